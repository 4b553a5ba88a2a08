"""What VICReg's loss of more than two views adds to that of two: which views go together, and the distance of all.

Shape suffixes: N samples of this rank's batch, D embedding width, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastvicreg.kernels.loss.operators import wide_dtype, without_autocast
from fastvicreg.kernels.loss.ranks import Ranks


class Pair(NamedTuple):
    """Two views whose variance and covariance one call of the loss of two views computes."""

    first: int
    second: int
    share: float
    """Weight of that call's two terms in those of all views."""


def spread_pairs(count: int) -> list[Pair]:
    """Every view of ``count`` once, two at a time; the last of an odd number stands beside itself, for half.

    A pair's terms are sums over two views, those of the loss twice the mean over all: a share of 2 / V each.
    """
    return [
        Pair(first, min(first + 1, count - 1), (2 if first + 1 < count else 1) / count) for first in range(0, count, 2)
    ]


def mean_pair_distance(views_ND: Sequence[Tensor], group: str) -> Tensor:
    """The mean squared error of two views, averaged over all V (V - 1) / 2 pairs, without going through the pairs.

    With the mean view ``m = sum_i z_i / V``, the differences from it sum to nothing, so that
    ``sum_ij |z_i - z_j|^2 = sum_ij (|z_i - m|^2 + |z_j - m|^2) = 2 V sum_i |z_i - m|^2`` over ordered pairs, and half
    of it over pairs i < j. The mean over pairs is then ``2 / (V - 1) sum_i mse(z_i, m)``: V errors for V (V - 1) / 2.
    Its gradient at z_i is ``4 (z_i - m) / ((V - 1) N D)``: that through m is a multiple of the same vanishing sum,
    and m is taken as a constant. Differentiable once.

    In fp32 at least. Among the ranks of ``group`` the value is the mean over them, the gradient the rank's own.
    """
    device, wide = views_ND[0].device.type, wide_dtype(views_ND[0].dtype)
    with without_autocast(device):
        wide_ND = [z_ND.to(wide) for z_ND in views_ND]
        with torch.no_grad():
            mean_ND = reduce(add, wide_ND) / len(wide_ND)
        errors = [functional.mse_loss(z_ND, mean_ND) for z_ND in wide_ND]
        distance = torch.stack(errors).sum() * (2 / (len(errors) - 1))
        if not group:
            return distance
        return distance + (mean_over_ranks(distance.detach(), group) - distance).detach()


def mean_over_ranks(value: Tensor, group: str) -> Tensor:
    """Of one value a rank, without gradient; to a compiler as an operator, which it takes whole."""
    return _mean_operator(value, group) if torch.compiler.is_compiling() else _mean(value, group)


def _mean(value: Tensor, group: str) -> Tensor:
    ranks = Ranks.named(group)
    return ranks.add(value.clone()) / ranks.size


_mean_operator = torch.library.custom_op("fastvicreg::mean_over_ranks", _mean, mutates_args=())


@_mean_operator.register_fake
def _(value: Tensor, group: str) -> Tensor:
    return torch.empty_like(value)
