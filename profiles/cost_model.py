"""A step's time on GPUs of a kind, from its arithmetic and its traffic: a roofline, layer by layer.

Every constant names where it comes from; none was fitted to a measurement of this project, which has none on a GPU.
Shape suffixes of the text: V views, B images of one GPU, N images of all, D embedding width, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastvicreg.config import TrainConfig, kernel_choices
from fastvicreg.contracts import BuildContext
from fastvicreg.encoders import build_encoder
from fastvicreg.errors import UserError
from fastvicreg.methods.settings import branch_of
from fastvicreg.train.memory import predict as predict_memory


@dataclass(frozen=True)
class GPU:
    """What its vendor's data sheet says of one GPU, and of the machine that it is sold in."""

    flops: float
    """bf16 products a second, dense."""
    bandwidth: float
    """Bytes of its memory a second."""
    memory: float
    """Bytes."""
    link: float
    """Bytes a second to its neighbours in a machine, one way."""
    network: float
    """Bytes a second to other machines, one way."""
    per_machine: int = 8


GPUS = {
    "a100-40": GPU(312e12, 1.555e12, 40e9, 300e9, 25e9),  # DGX A100: NVLink 3, 200 Gb/s a GPU
    "a100-80": GPU(312e12, 2.039e12, 80e9, 300e9, 25e9),
    "h100": GPU(989e12, 3.35e12, 80e9, 450e9, 50e9),  # DGX H100: NVLink 4, 400 Gb/s a GPU
    "h200": GPU(989e12, 4.8e12, 141e9, 450e9, 50e9),
    "rtx3090": GPU(71e12, 0.936e12, 24e9, 16e9, 12.5e9, 4),  # PCIe 4 x8 each way
}

COMPUTE, TRAFFIC, COLLECTIVE = 0.55, 0.715, 0.8
"""Shares of the data sheet that kernels reach: cuDNN's large convolutions, streaming kernels, NCCL's large messages."""
LATENCY, FAR_LATENCY = 15e-6, 15e-6
"""Seconds of a small collective in a machine, and for each doubling of machines."""
OVERLAPPED = 0.9
"""Share of backward that gradients can be sent in: the first bucket comes when some of it is done."""
BACKWARD = 2 / 3
"""Share of backward in a pass over the network: two products of a convolution's three."""
UPDATE_BYTES = 48
"""Of an update, for each parameter: LARS in two passes 28, gradient norm 4, autocast's copies and accumulation 16."""
AUGMENT_BYTES = 8
"""For each pixel and colour of a view: read as uint8, written and read again in halves."""
SPARE = 0.92
"""Share of the memory that a step can have: the rest is the context's and the allocator's."""

PASSES: Mapping[str, Mapping[str, int]] = {
    "eager": {"relu": 13, "plain": 8, "last": 19},
    "compiled": {"relu": 10, "plain": 8, "last": 12},
    "fused": {"relu": 8, "plain": 8, "last": 10},
}
"""Times that a batch norm's tensor is read or written, forward and backward: with a ReLU, alone, and with an addition.

eager: norm 3 and 5, ReLU 2 and 3, addition 3, sum of its gradients 3. compiled: what Inductor makes one of. fused:
``kernels.norm`` with ReLU's mask recomputed: statistics 1, result 2 (3), sums 2, gradient 3 (4)."""


@dataclass(frozen=True)
class Traced:
    """A view's way through the encoder: what each layer computes and moves."""

    convolutions: tuple[tuple[float, float, int], ...]
    """(operations of one pass, bytes of one pass, passes) of each."""
    norms: tuple[tuple[str, float], ...]
    """(kind, bytes of its tensor) of each."""
    parameters: int
    expander: tuple[int, ...]
    """Widths from the features to the embeddings."""
    pixels: int


@dataclass(frozen=True)
class Prediction:
    """Seconds of one GPU's step by what they go to, and what follows from them."""

    gpus: int
    batch: int
    """Images of one GPU."""
    convolutions: float
    norms: float
    head: float
    """Expander and loss."""
    update: float
    augment: float
    collectives: float
    """Gradients that backward did not hide, batch norms' statistics, gathered embeddings."""
    loader: float
    """Seconds in which the cores deliver a batch."""

    @property
    def device(self) -> float:
        """What the device needs for a step."""
        return self.convolutions + self.norms + self.head + self.update + self.augment + self.collectives

    @property
    def step(self) -> float:
        """Device and loader work side by side."""
        return max(self.device, self.loader)

    @property
    def bound(self) -> str:
        """The largest part, or the loader where the device waits for it."""
        if self.loader > self.device:
            return "loader"
        parts = {"convolutions": self.convolutions, "norms": self.norms, "comm": self.collectives}
        parts |= {"expander and loss": self.head, "update": self.update}
        return max(parts, key=parts.__getitem__)


def trace(config: TrainConfig) -> Traced:
    """The layers of ``config``'s encoder at its image size, on tensors that hold nothing.

    ``UserError`` for an encoder without batch norms, whose traffic is not counted here, and a method without expander.
    """
    if words := branch_of(config.method):
        raise UserError(f"--branch-b {words[0]}: the model counts one network for both views: leave it out.")
    with torch.device("meta"):
        method: Any = config.method.build(BuildContext(partial(build_encoder, config.encoder), kernel_choices(config)))
        encoder: nn.Module = next(iter(method.encoders.values()))
    convolutions: list[tuple[float, float, int]] = []
    norms: list[tuple[str, float]] = []

    def convolved(module: nn.Module, given: tuple[Tensor], made: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        operations = 2 * made[0].numel() * module.weight[0].numel()
        passes = 2 if module.in_channels == 3 else 3  # an image has no gradient
        convolutions.append((operations, 2 * (given[0][0].numel() + made[0].numel()), passes))

    def normalised(kind: str) -> Any:
        return lambda module, given, made: norms.append((kind, 2 * made[0].numel()))

    last = _last_norms(encoder)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(convolved)
        elif isinstance(module, nn.BatchNorm2d):
            kind = "plain" if "downsample" in name else "last" if module in last else "relu"
            module.register_forward_hook(normalised(kind))
    size = config.data.image_size
    encoder(torch.empty(1, 3, size, size, device="meta"))
    if not norms:
        raise UserError(f"--arch {config.encoder.arch}: the model counts networks of convolutions and batch norms.")
    linears = [module for module in method.head.modules() if isinstance(module, nn.Linear)]
    widths = (*(linear.in_features for linear in linears), linears[-1].out_features)
    whole = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    return Traced(tuple(convolutions), tuple(norms), whole, widths, 3 * size * size)


def _last_norms(encoder: nn.Module) -> set[nn.Module]:
    """Each residual block's last batch norm, which the shortcut is added to."""
    found = set()
    for module in encoder.modules():
        own = [child for child in module.children() if isinstance(child, nn.BatchNorm2d)]
        if len(own) > 1:
            found.add(own[-1])
    return found


def view_seconds(traced: Traced, gpu: GPU, norms: str) -> tuple[float, float]:
    """(convolutions, norms) of one view, forward and backward."""
    flops, bandwidth = gpu.flops * COMPUTE, gpu.bandwidth * TRAFFIC
    convolutions = sum(
        passes * max(operations / flops, moved / bandwidth) for operations, moved, passes in traced.convolutions
    )
    return convolutions, sum(PASSES[norms][kind] * moved for kind, moved in traced.norms) / bandwidth


def predict(
    traced: Traced, gpu: GPU, *, gpus: int, batch_size: int, views: int = 2, norms: str = "eager", joint: bool = False,
    loader_rate: float = math.inf,
) -> Prediction:  # fmt: skip
    """A step of ``batch_size`` images on ``gpus``; ``loader_rate`` is images a second that one GPU's cores deliver.

    ``UserError`` where the batch does not divide among the GPUs.
    """
    if gpus < 1 or batch_size % gpus:
        raise UserError(f"--gpus {gpus}: a total batch of {batch_size} does not divide among them.")
    batch, width = batch_size // gpus, traced.expander[-1]
    flops, bandwidth = gpu.flops * COMPUTE, gpu.bandwidth * TRAFFIC
    convolved, normalised = (each * batch * views for each in view_seconds(traced, gpu, norms))
    products = sum(a * b for a, b in zip(traced.expander, traced.expander[1:], strict=False))
    expander = 6 * products * batch * views / flops
    loss = 4 * views * batch * batch_size * width / flops  # Gram rows of this GPU, forward and backward
    backward = BACKWARD * (convolved + normalised + expander)
    gradients = max(0.0, _all_reduce(4 * traced.parameters, gpu, gpus) - OVERLAPPED * backward)
    small = _small_collective(gpu, gpus)
    # One gather forward and one sum backward for each norm; both views' at once where they are one batch.
    statistics = 2 * len(traced.norms) * small * (1 if joint else views)
    gathered = small + 4 * views * batch_size * width / _slowest(gpu, gpus) if gpus > 1 else 0.0
    return Prediction(
        gpus,
        batch,
        convolved,
        normalised,
        expander + loss,
        UPDATE_BYTES * traced.parameters / bandwidth,
        AUGMENT_BYTES * traced.pixels * batch * views / bandwidth,
        gradients + statistics + gathered,
        batch / loader_rate,
    )


def _all_reduce(size: float, gpu: GPU, gpus: int) -> float:
    """A ring within each machine, and between machines of each GPU's share."""
    near = min(gpus, gpu.per_machine)
    machines = -(-gpus // gpu.per_machine)
    within = 2 * (near - 1) / near * size / (gpu.link * COLLECTIVE)
    between = 2 * (machines - 1) / machines * (size / near) / (gpu.network * COLLECTIVE)
    return within + between


def _small_collective(gpu: GPU, gpus: int) -> float:
    if gpus == 1:
        return 0.0
    machines = -(-gpus // gpu.per_machine)
    return LATENCY + FAR_LATENCY * math.ceil(math.log2(machines))


def _slowest(gpu: GPU, gpus: int) -> float:
    return (gpu.link if gpus <= gpu.per_machine else gpu.network) * COLLECTIVE


def largest_batch(config: TrainConfig, gpu: GPU) -> int:
    """Images of one GPU that its memory holds, a multiple of 8; 0 where not even 8 fit."""
    few, many = (predict_memory(config, batch, precision="bf16").total for batch in (8, 16))
    for_an_image = (many - few) / 8
    fixed = few - 8 * for_an_image
    return max(0, int((SPARE * gpu.memory - fixed) / for_an_image) // 8 * 8)
