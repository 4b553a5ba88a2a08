"""What a step takes of a device's memory, told before anything is on it: traced on tensors that hold nothing.

Shape suffix: B batch (this process's share).
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastvicreg.config import TrainConfig, kernel_choices
from fastvicreg.contracts import BuildContext
from fastvicreg.datasets import recipe_of
from fastvicreg.encoders import build_encoder, stages_of
from fastvicreg.kernels.norm import forget
from fastvicreg.methods.settings import takes_places
from fastvicreg.train.batch_norm import replace_norms
from fastvicreg.train.device import AUTOCAST
from fastvicreg.train.distributed import Processes
from fastvicreg.train.drop_path import install
from fastvicreg.train.recomputed import blocks_of

GB = 1e9
SURE = 1.1
"""A prediction is refused only where it exceeds what is free by this factor: the allocator's rounding is not known."""
MOMENTS = {"lars": 1, "sgd": 1, "adam": 2, "adamw": 2}
"""Values that an optimizer keeps for each trained parameter."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process's step at its peak, by what they are for."""

    weights: int
    """Weights, buffers, target networks, and the copies of them that autocast makes."""
    gradients: int
    moments: int
    """What the optimizer keeps."""
    views: int
    kept: int
    """What the forward pass keeps for the backward pass."""

    @property
    def fixed(self) -> int:
        """What does not depend on the batch."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> int:
        """All of it."""
        return self.fixed + self.views + self.kept


def predict(config: TrainConfig, batch_B: int, *, precision: str) -> Memory:
    """The memory of a process's step on ``batch_B`` images; nothing is computed, and no weight is made.

    The recipe's views at their largest are taken, in the precision's own type, as they are fed. A cached step
    keeps a micro-batch's activations. What kernels allocate for a moment is not counted.
    """
    dtype = AUTOCAST[precision] or torch.float32
    with torch.device("meta"):
        method = config.method.build(BuildContext(partial(build_encoder, config.encoder), kernel_choices(config)))
    assert isinstance(method, nn.Module)
    run = config.run
    replace_norms(method, joint=run.views == "joint", recompute=run.activations == "recompute")
    held = sum(tensor.nbytes for tensor in (*method.parameters(), *method.buffers()))
    gradients = sum(param.nbytes for param in method.parameters() if param.requires_grad)
    copies = held // 2 if dtype.itemsize == 2 else 0
    # Autocast has no form for tensors without a device: the network's own type stands for it.
    method.to(dtype)
    part_B, largest = batch_B // getattr(config.step, "micro_batches", 1), max(config.data.training_sizes())
    views = [torch.empty((part_B, *shape), device="meta", dtype=kind) for shape, kind in _views(config, largest, dtype)]
    views_bytes = sum(view.nbytes for view in views)
    drops, dropping = install(method, config.run.seed), nullcontext()
    if drops is not None:
        factor_VKB = torch.empty((len(views), len(drops.rates), part_B), device="meta", dtype=torch.float64)
        dropping = drops.during(factor_VKB)
    with dropping, Alive() as alive:
        again = _Foretold(alive)
        for encoder in method.encoders.values():
            for blocks in blocks_of(encoder, run.recompute_stages):
                blocks.again = again
        inputs = tuple(view.to(memory_format=torch.channels_last) if view.ndim == 4 else view for view in views)
        if takes_places(config.method):
            inputs = (*inputs, torch.empty((part_B, len(views), 5), device="meta"))
        results = method.embed(inputs), method.target(inputs)  # held, and so the graph behind them
    # The loss, in fp32 whatever the precision, keeps about a copy of each embedding and its gradient.
    loss = 8 * sum(leaf.numel() for leaf in tree_leaves(results) if isinstance(leaf, Tensor) and leaf.requires_grad)
    kept = max(alive.bytes(), again.most) - views_bytes + loss * batch_B // part_B
    moments = MOMENTS[config.optim.optimizer] * gradients
    return Memory(held + copies, gradients, moments, views_bytes * batch_B // part_B, kept)


def _views(config: TrainConfig, largest: int, dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of one sample's views."""
    if config.pair.pair:
        names = [side.modality for side in config.pair.parsed()]
        shapes = [(3, largest, largest) if name == "image" else config.pair.shape(name) for name in names]
        return [(shape, torch.int64 if name == "text" else dtype) for shape, name in zip(shapes, names, strict=True)]
    return [((3, side, side), dtype) for side in (view.size or largest for view in recipe_of(config.data).views)]


class Alive(TorchDispatchMode):
    """Counts the memory that operators have made and something still holds: of a forward pass, what autograd kept.

    Hooks on saved tensors would not do: of nested ones autograd asks the innermost alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def bytes(self) -> int:
        """At this moment."""
        return sum(size for made, size in self._made.values() if not made.expired())


class _Foretold:
    """Stands for ``recompute_stages``: keeps what it would of each block, and notes the most that there is meanwhile.

    Backward comes to a block when what was kept after it is gone, and then holds all of it.
    """

    def __init__(self, alive: Alive) -> None:
        self._alive = alive
        self._inputs: list[Tensor] = []
        self.most = 0

    def __call__(self, block: nn.Module, x: Tensor) -> Tensor:
        self._inputs.append(x)
        # What is saved is the block's own, as in the second pass; an output that held its graph would hold itself.
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor):
            y = block(x)
        self.most = max(self.most, self._alive.bytes())
        return forget(y).detach().requires_grad_()


def fitted(config: TrainConfig, processes: Processes, *, device: str, precision: str) -> tuple[TrainConfig, str]:
    """``config`` with ``--activations auto`` decided, and a line that says why where that is not "keep".

    The first that fits: all kept, batch norms' outputs computed again, and with these the blocks of ever more stages,
    which takes time. Where none does, that of the least memory, for a refusal that names the largest batch.
    """
    if config.run.activations != "auto":
        return config, ""
    own = config.run.recompute_stages
    kept = _keeping(config, "keep", own)
    if not device.startswith("cuda") or config.step.name == "compiled":  # which keeps what its compiler chooses
        return kept, ""
    free = _free(device)
    more = 0 if own else stages_of(config.encoder)
    ways = [kept, *(_keeping(config, "recompute", own or tuple(range(1, last + 1))) for last in range(more + 1))]
    fitting = (way for way in ways if not shortage_of(way, processes, free, where=device, precision=precision))
    if (chosen := next(fitting, None)) is None:
        return ways[-1], ""
    if chosen is kept:
        return kept, ""
    stages = chosen.run.recompute_stages
    batch_B = config.run.batch_size // processes.world_size
    needed = predict(kept, batch_B, precision=precision).total
    again = f" and, as by --recompute-stages {' '.join(map(str, stages))}, blocks" if stages != own else ""
    return chosen, (
        f"outputs of batch norms{again} are computed again in backward: kept, they would need about "
        f"{needed / GB:.0f} GB on {device}, where {free / GB:.0f} GB are free (--activations keep: not so)."
    )


def _keeping(config: TrainConfig, activations: Any, stages: tuple[int, ...]) -> TrainConfig:
    return replace(config, run=replace(config.run, activations=activations, recompute_stages=stages))


def shortage(config: TrainConfig, processes: Processes, *, device: str, precision: str) -> str:
    """A line on a batch that the device's memory does not hold, with one that it holds; "" where it does.

    To be asked before anything is on the device. On a CPU, whose memory others share and which swaps, always "".
    """
    if not device.startswith("cuda"):
        return ""
    return shortage_of(config, processes, _free(device), where=device, precision=precision)


def _free(device: str) -> int:
    """Bytes that a run can have there, with what torch still keeps of an earlier run of this process given back.

    A study trains many: what one has used counts as taken until then, and the next would be refused.
    """
    gc.collect()  # a step refers to itself
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def shortage_of(config: TrainConfig, processes: Processes, free: int, *, where: str, precision: str) -> str:
    """``shortage`` where ``free`` bytes can be had."""
    batch_B = config.run.batch_size // processes.world_size
    needed = predict(config, batch_B, precision=precision)
    if needed.total <= SURE * free:
        return ""
    for_an_image = (needed.views + needed.kept) / batch_B
    least = 8 * processes.world_size
    fits = int((free - needed.fixed) / for_an_image) * processes.world_size // least * least
    ways = [f"--batch-size {fits}"] if fits > 0 else []
    if config.run.activations != "recompute":
        ways.append("--activations recompute")
    if config.step.name != "compiled" and not config.run.recompute_stages and (count := stages_of(config.encoder)):
        ways.append(f"--recompute-stages {' '.join(map(str, range(1, count + 1)))}")
    if config.step.name != "cached":
        ways.append("--step cached")
    return (
        f"--batch-size {config.run.batch_size} needs about {needed.total / GB:.0f} GB on {where}, where "
        f"{free / GB:.0f} GB are free: give {', '.join(ways) or 'a narrower network'}."
    )
