"""The two collectives of a synchronised norm: an all-gather forward, an all-reduce backward; the host awaits neither.

A compiler, and whatever else traces, gets them as operators; plain tensors skip an operator's dispatch.

Shape suffixes: R processes, X a process's statistics in one row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from fastvicreg.kernels.loss.ranks import Ranks

PLAIN = (Tensor, Parameter)


def gathered(own_X: Tensor, ranks: int, group: str) -> Tensor:
    """(R, X): every process's row, by rank."""
    if traced(own_X):
        return _gather_operator(own_X, ranks, group)
    return _gather(own_X, ranks, group)


def summed(own: Tensor, group: str) -> Tensor:
    """The sum over the processes; ``own`` may be written over."""
    if traced(own):
        return _sum_operator(own, group)
    return Ranks.named(group).add(own)


def traced(tensor: Tensor) -> bool:
    """Whether a compiler or a tensor of another kind looks on."""
    return torch.compiler.is_compiling() or type(tensor) not in PLAIN


def _gather(own_X: Tensor, ranks: int, group: str) -> Tensor:
    return Ranks.named(group).gathered_row(own_X).view(ranks, -1)


def _sum(own: Tensor, group: str) -> Tensor:
    return Ranks.named(group).add(own.clone())


_gather_operator = torch.library.custom_op("fastvicreg::norm_gather", _gather, mutates_args=())
_sum_operator = torch.library.custom_op("fastvicreg::norm_sum", _sum, mutates_args=())


@_gather_operator.register_fake
def _(own_X: Tensor, ranks: int, group: str) -> Tensor:
    return own_X.new_empty(ranks, own_X.numel())


@_sum_operator.register_fake
def _(own: Tensor, group: str) -> Tensor:
    return torch.empty_like(own)
