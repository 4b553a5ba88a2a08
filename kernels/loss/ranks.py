"""The loss's collectives: which rows of the global batch a rank holds, and how the ranks' parts are joined.

Shape suffixes: N samples of this rank's batch, M of the global batch, D embedding width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from fastvicreg import stages
from fastvicreg.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """The processes among which the global batch lies, each with as many rows; one process alone makes no call."""

    size: int = 1
    rank: int = 0
    name: str = ""  # of the group, which stands for it in a compiled graph

    @property
    def group(self) -> dist.ProcessGroup:
        """The group of that name."""
        # Functional collectives find a group by the same function; torch has no public one.
        return dist.distributed_c10d._resolve_process_group(self.name)  # pyright: ignore

    @staticmethod
    def named(name: str) -> Ranks:
        """Of ``group_name``'s answer."""
        return _named(name) if name else Ranks()

    def compared(self, z_ND: Tensor) -> Ranks:
        """Itself, where every rank holds embeddings of the same shape and type as this one; else ``UserError``.

        The first time that a shape is seen, the ranks compare theirs (one small collective and a wait for the
        device): every rank must therefore meet new shapes at the same step.
        """
        if self.size > 1:
            _compare(self.name, tuple(z_ND.shape), z_ND.dtype, z_ND.device)
        return self

    def gathered(self, za_ND: Tensor, zb_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Both views' (M, D) rows of all ranks, in rank order, by one collective."""
        if self.size == 1:
            return za_ND, zb_ND
        own_2ND = torch.stack((za_ND, zb_ND))
        all_R2ND = own_2ND.new_empty(self.size, *own_2ND.shape)
        # Of one dimension: gloo joins along the first alone.
        with record_function(stages.COMM):
            all_gather_into(all_R2ND.flatten(), own_2ND.flatten(), self.group)
        return all_R2ND[:, 0].flatten(0, 1), all_R2ND[:, 1].flatten(0, 1)

    def gathered_row(self, own_X: Tensor) -> Tensor:
        """Every rank's row of values, (R, X) in rank order as one dimension."""
        all_RX = own_X.new_empty(self.size * own_X.numel())
        with record_function(stages.COMM):
            all_gather_into(all_RX, own_X, self.group)
        return all_RX

    def own(self, z_MD: Tensor) -> Tensor:
        """This rank's N rows of a gathered M."""
        n = len(z_MD) // self.size
        return z_MD[self.rank * n : (self.rank + 1) * n]

    def add(self, tensor: Tensor) -> Tensor:
        """Summed over the ranks, in place but in a compiled graph."""
        if self.size > 1:
            if torch.compiler.is_compiling():
                return _sum_operator(tensor, self.name)
            with record_function(stages.COMM):
                dist.all_reduce(tensor, group=self.group)
        return tensor


def group_name(group: dist.ProcessGroup | None) -> str:
    """What names the group to an operator, which takes no objects; "" where the batch is one process's own.

    Raises ``UserError`` where ``group`` does not hold this process.
    """
    if group is None:
        return ""
    if dist.get_rank(group) < 0:
        raise UserError("the loss's process group does not hold this process: pass a group on its members alone.")
    if dist.get_world_size(group) == 1:
        return ""
    return group.group_name


class GatherRows(torch.autograd.Function):
    """All ranks' rows, (N, D) to (M, D); the gradient of a rank's rows is summed over the ranks: FullGatherLayer."""

    @staticmethod
    def forward(ctx: Any, z_ND: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        z_MD = z_ND.new_empty(ranks.size * z_ND.shape[0], z_ND.shape[1])
        with record_function(stages.COMM):
            all_gather_into(z_MD, z_ND.contiguous(), ranks.group)
        return z_MD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.own(ctx.ranks.add(grads[0].clone(memory_format=torch.contiguous_format))), None


def all_rows(z_ND: Tensor, ranks: Ranks) -> Tensor:
    """``GatherRows``; to a compiler as operators, which it takes whole."""
    if torch.compiler.is_compiling():
        return _rows_operator(z_ND, ranks.name, ranks.size, ranks.rank)
    return GatherRows.apply(z_ND, ranks)


def all_gather_into(all_ranks: Tensor, own: Tensor, group: Any) -> None:
    # The same under its name as of torch 2.13, where the other is deprecated.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(all_ranks, own, group=group)


def _named(name: str) -> Ranks:
    group = Ranks(name=name).group
    return Ranks(dist.get_world_size(group), dist.get_rank(group), name)


@functools.lru_cache(maxsize=64)
def _compare(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    ranks = _named(name)
    own = torch.tensor([*shape, dtype.itemsize], device=device)
    all_R3 = own.new_empty(ranks.size * 3)
    all_gather_into(all_R3, own, ranks.group)
    found = all_R3.view(-1, 3).tolist()
    if any(row != found[0] for row in found):
        shapes = ", ".join(f"({n}, {d}) of {8 * size} bits" for n, d, size in found)
        raise UserError(f"every rank needs as many embeddings of one kind, got {shapes}: drop the last, uneven batch.")


def _summed(tensor: Tensor, name: str) -> Tensor:
    return _named(name).add(tensor.clone(memory_format=torch.contiguous_format))


_sum_operator = torch.library.custom_op("fastvicreg::sum_over_ranks", _summed, mutates_args=())


@_sum_operator.register_fake
def _(tensor: Tensor, name: str) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _rows(z_ND: Tensor, name: str, size: int, rank: int) -> Tensor:
    return GatherRows.apply(z_ND, Ranks(size, rank, name))


_rows_operator = torch.library.custom_op("fastvicreg::rows_of_ranks", _rows, mutates_args=())


@_rows_operator.register_fake
def _(z_ND: Tensor, name: str, size: int, rank: int) -> Tensor:
    return z_ND.new_empty(size * z_ND.shape[0], *z_ND.shape[1:])


def _rows_context(ctx: Any, inputs: tuple[Tensor, str, int, int], output: Tensor) -> None:
    _, *ctx.ranks = inputs


def _rows_backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None, None]:
    name, size, rank = ctx.ranks
    return Ranks(size, rank, name).own(_sum_operator(grad_MD, name)), None, None, None


_rows_operator.register_autograd(_rows_backward, setup_context=_rows_context)
