"""VICRegL's local criterion: VICReg's terms at each position, between rows that are matched.

Shape suffixes: B this process's batch, M the batch of all processes, N positions of a map, S positions of several
maps, K chosen positions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.kernels.loss.ranks import Ranks
from fastvicreg.methods.embeddings import gathered
from fastvicreg.methods.vicregl.matching import Matches, chosen

COMPARED = 2
"""Views, the first, that are compared with all others (main_vicregl.py: ``range(2)``)."""
EPS = 1e-4
"""Added to a variance before its root."""


class Criterion(NamedTuple):
    """Unweighted terms."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def pair_shares(views: int) -> dict[tuple[int, int], float]:
    """Pairs of one of the first two views and another, each once, and their share of the mean.

    The released code takes the mean over ordered pairs (i, j), i one of the first two: their own pair is there twice.
    """
    ordered = COMPARED * (views - 1)
    pairs = [(one, other) for one in range(COMPARED) for other in range(one + 1, views)]
    return {(one, other): (2 if other < COMPARED else 1) / ordered for one, other in pairs}


def local_criterion(
    maps_BNC: Sequence[Tensor], matches: Callable[[int, int], Iterable[Matches]], ranks: Ranks
) -> Criterion:
    """The terms of VICReg between the matched rows of every pair of ``pair_shares``, in both directions.

    ``matches(one, other)`` gives the ways in which positions of map ``one`` belong to some of map ``other``. Their
    terms are summed, and the mean taken over directions and pairs. Variance (the hinge) and covariance are of each
    position over the batch of all processes, the mean over positions and the two sides; invariance is of this
    process's rows.
    """
    distances: list[Tensor] = []
    sides: list[tuple[float, Tensor]] = []
    wholes = [0.0] * len(maps_BNC)
    for (first, second), pair in pair_shares(len(maps_BNC)).items():
        for one, other in ((first, second), (second, first)):
            for own_BK, other_BK in matches(one, other):
                own_BKC, other_BKC = chosen(maps_BNC[one], own_BK), chosen(maps_BNC[other], other_BK)
                distances.append(pair / 2 * F.mse_loss(own_BKC, other_BKC))
                sides.append((pair / 4, other_BKC))
                if own_BK is None:
                    wholes[one] += pair / 4  # the same in every pair: computed once
                else:
                    sides.append((pair / 4, own_BKC))
    sides += [(share, map_BNC) for share, map_BNC in zip(wholes, maps_BNC, strict=True) if share]
    own_BSC = torch.cat([rows for _, rows in sides], 1)
    rows_MSC = gathered(own_BSC.flatten(1), ranks).unflatten(1, own_BSC.shape[1:])
    variances: list[Tensor] = []
    covariances: list[Tensor] = []
    for (share, _), rows_MNC in zip(sides, rows_MSC.split([rows.shape[1] for _, rows in sides], 1), strict=True):
        variance, covariance = spread_terms(rows_MNC)
        variances.append(share * variance)
        covariances.append(share * covariance)
    return Criterion(torch.stack(distances).sum(), torch.stack(variances).sum(), torch.stack(covariances).sum())


def spread_terms(rows_MNC: Tensor) -> tuple[Tensor, Tensor]:
    """The hinge of each position's standard deviations over the batch, and its squared off-diagonal covariances over C:
    the mean over positions of both."""
    samples, _, channels = rows_MNC.shape
    var_NC = rows_MNC.var(0)
    variance = F.relu(1 - (var_NC + EPS).sqrt()).mean()
    centred_NMC = (rows_MNC - rows_MNC.mean(0)).transpose(0, 1)
    # The sum of squares of X^T X is that of X X^T, which is smaller for batches below the width.
    products = centred_NMC.mT @ centred_NMC if samples >= channels else centred_NMC @ centred_NMC.mT
    squares_N = (products / (samples - 1)).square().sum((1, 2)) - var_NC.square().sum(1)
    return variance, squares_N.mean() / channels
