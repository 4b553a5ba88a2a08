"""A step's time on GPUs of a kind, from its arithmetic and its traffic: a roofline, layer by layer.

Every constant names where it comes from; none was fitted to a measurement of this project, which has none on a GPU.
Shape suffixes of the text: V views, B images of one GPU, N images of all, D embedding width, P parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.profiles.layers import Product, Traced
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


@dataclass(frozen=True)
class Prediction:
    """Seconds of one GPU's step by what they go to, and what follows from them."""

    gpus: int
    batch: int
    """Images of one GPU."""
    convolutions: float
    """And linear layers and attention, of the encoders."""
    norms: float
    """And additions and activations."""
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


def image_seconds(traced: Traced, gpu: GPU, norms: str) -> tuple[float, float]:
    """(products, norms) of one image: all its views through the encoders, forward and backward.

    ``UserError`` for "fused" norms of a network that has none.
    """
    flops, bandwidth = gpu.flops * COMPUTE, gpu.bandwidth * TRAFFIC
    products = sum(_seconds(product, flops, bandwidth) for tower in traced.views for product in tower.products)
    try:
        moved = sum(tower.traffic(norms) for tower in traced.views)
    except KeyError:
        raise UserError(
            f"--norms {norms} are kernels of batch norms, and this network has others: give eager or compiled."
        ) from None
    return products, moved / bandwidth


def _seconds(product: Product, flops: float, bandwidth: float) -> float:
    return product.passes * max(product.operations / flops, product.moved / bandwidth)


def predict(
    traced: Traced, gpu: GPU, *, gpus: int, batch_size: int, norms: str = "eager", joint: bool = False,
    loader_rate: float = math.inf,
) -> Prediction:  # fmt: skip
    """A step of ``batch_size`` images on ``gpus``; ``loader_rate`` is images a second that one GPU's cores deliver.

    ``UserError`` where the batch does not divide among the GPUs.
    """
    if gpus < 1 or batch_size % gpus:
        raise UserError(f"--gpus {gpus}: a total batch of {batch_size} does not divide among them.")
    batch, width = batch_size // gpus, traced.width
    views = sum(tower.gradient for tower in traced.views)
    flops, bandwidth = gpu.flops * COMPUTE, gpu.bandwidth * TRAFFIC
    computed, normalised = (each * batch for each in image_seconds(traced, gpu, norms))
    # Weights of a head are read once for the batch: arithmetic alone counts.
    expander = batch * sum(product.passes * product.operations for product in traced.heads) / flops
    loss = 4 * views * batch * batch_size * width / flops  # Gram rows of this GPU, forward and backward
    backward = BACKWARD * (computed + normalised + expander)
    gradients = max(0.0, _all_reduce(4 * traced.parameters, gpu, gpus) - OVERLAPPED * backward)
    small = _small_collective(gpu, gpus)
    # One gather forward and one sum backward for each norm; both views' at once where they are one batch.
    statistics = 2 * traced.norms * small * (1 if joint else views)
    gathered = small + 4 * views * batch_size * width / _slowest(gpu, gpus) if gpus > 1 else 0.0
    return Prediction(
        gpus,
        batch,
        computed,
        normalised,
        expander + loss,
        UPDATE_BYTES * traced.parameters / bandwidth,
        AUGMENT_BYTES * traced.pixels * batch / bandwidth,
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
