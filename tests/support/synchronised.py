"""Norms among processes that meet over gloo, each with its rows of one batch, beside one process with all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from fastvicreg.kernels.norm import JointViews
from fastvicreg.train.batch_norm import own_group, replace_norms

CHANNELS = 5
SHAPES = {"1-D": (12, CHANNELS), "2-D": (12, CHANNELS, 3, 4)}
SHARES = (4, 2)
"""Rows of each process in each view of six: not equally many."""


def problem(kind: str, dtype: torch.dtype, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x, residual, weights of the outputs), views x 6 rows; columns off centre."""
    generator = torch.Generator().manual_seed(7)
    shape = (6 * views, *SHAPES[kind][1:])
    x, residual, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return (3 + 2 * x).to(dtype), residual.to(dtype), weight.to(dtype)


def layer(kind: str, dtype: torch.dtype) -> nn.Module:
    """A norm whose scale and shift are not 1 and 0."""
    norm = nn.BatchNorm1d(CHANNELS) if kind == "1-D" else nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, CHANNELS))
        norm.bias.copy_(torch.linspace(0.5, -0.5, CHANNELS))
    return norm.to(dtype)


def rows_of(rank: int, views: int) -> Tensor:
    """Which rows of the whole batch a process holds: its share of every view."""
    first = sum(SHARES[:rank])
    return torch.cat([6 * view + torch.arange(first, first + SHARES[rank]) for view in range(views)])


def results(norm: Any, x: Tensor, residual: Tensor, weight: Tensor, run: Callable[..., Tensor] | None = None) -> Any:
    """Output, gradients of input, residual, scale and shift, running statistics."""
    x, residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
    y = (norm if run is None else run)(x, residual, relu=True)
    (y * weight).sum().backward()
    grads = (x.grad, residual.grad, norm.weight.grad, norm.bias.grad)
    return (y.detach(), *grads, norm.running_mean, norm.running_var, norm.num_batches_tracked)


def expected(kind: str, dtype: torch.dtype, views: int) -> Any:
    """One process's: torch's batch norm, view by view, the addition and ReLU."""
    norm: Any = layer(kind, dtype)

    def run(x: Tensor, residual: Tensor, *, relu: bool) -> Tensor:
        assert relu
        return torch.relu(torch.cat([norm(part) for part in x.chunk(views)]) + residual)

    return results(norm, *problem(kind, dtype, views), run)


def _share(rank: int, folder: str, cases: Any, options: dict[str, Any], wrap: Callable[[Any], Any] | None) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SHARES))
    group = own_group()
    for kind, dtype, views in cases:
        parent: Any = nn.Sequential(layer(kind, dtype))
        norm = replace_norms(parent, ranks=len(SHARES), group=group, joint=True, **options)[0]  # type: ignore[index]
        norm.joint_views = JointViews(views)
        rows = rows_of(rank, views)
        x, residual, weight = (each[rows] for each in problem(kind, dtype, views))
        found = results(norm, x, residual, weight, wrap(norm) if wrap else None)
        torch.save(found, f"{folder}/{rank}-{kind}-{dtype}-{views}.pt")
    dist.destroy_process_group()


def compiled(norm: Any) -> Any:
    """The layer, traced whole, its backward too."""
    return torch.compile(norm, fullgraph=True, backend="aot_eager")


def shared(folder: Path, cases: Any, *, wrap: Callable[[Any], Any] | None = None, **options: Any) -> dict[Any, Any]:
    """By case: the processes' results put together, as ``expected`` has them."""
    mp.spawn(_share, args=(str(folder), cases, options, wrap), nprocs=len(SHARES))  # type: ignore[attr-defined]
    joined = {}
    for kind, dtype, views in cases:
        parts = [torch.load(folder / f"{rank}-{kind}-{dtype}-{views}.pt") for rank in range(len(SHARES))]
        whole = []
        for place, each in enumerate(zip(*parts, strict=True)):
            if place < 3:
                filled = each[0].new_empty(6 * views, *each[0].shape[1:])
                for rank, rows in enumerate(each):
                    filled[rows_of(rank, views)] = rows
                whole.append(filled)
            elif place < 5:
                whole.append(sum(each))  # of each process's own rows: DDP averages them
            else:
                assert torch.equal(*each)  # the same on every rank, to the bit
                whole.append(each[0])
        joined[kind, dtype, views] = whole
    return joined
