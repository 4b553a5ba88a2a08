"""Weighted k-nearest-neighbour classification of frozen features, as the self-supervised literature reports it.

N samples of the bank, M queries, D features, C classes, K neighbours, Q queries and B of the bank at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["cosine", "euclidean"]

BANK_ELEMENTS = 32 << 20
"""Of the bank's features that are normalised at once."""
SIMILARITIES = 16 << 20
"""Of the block of similarities that is computed at once."""
QUERIES = 1024
EPSILON = 1e-5
"""Added to a distance before it is inverted (solo-learn, solo/utils/knn.py)."""
TOP = 5
"""Classes that are named for each query."""


@torch.no_grad()
def knn_predict(
    bank_ND: Tensor, bank_labels_N: Tensor, query_MD: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Predict each query's class by its ``k`` nearest in the bank, by cosine similarity s with weight exp(s / T).

    Returns predictions_M, int64. Source: Wu et al. 2018 section 3.4, as DINO's eval_knn.py and VICReg's Table 11.
    ``ValueError`` where the bank holds fewer than ``k`` samples, a label below 0 or another number of labels, where the
    temperature is not above 0, and where a feature is not finite.
    """
    (top_MK,) = knn_rank(bank_ND, bank_labels_N, query_MD, (k,), temperature)
    return top_MK[:, 0]


@torch.no_grad()
def knn_rank(
    bank_ND: Tensor,
    bank_labels_N: Tensor,
    query_MD: Tensor,
    ks: Sequence[int],
    temperature: float = 0.07,
    distance: Distance = "cosine",
) -> list[Tensor]:
    """The classes with most votes, best first, for each of ``ks`` in one pass over the bank: int64 (M, up to 5) each.

    A neighbour votes with exp(s / T) of its cosine similarity s, or under "euclidean" with 1 / (d + 1e-5) of its
    distance d, as solo-learn's. Memory beyond the arguments: about 0.4 GB, and 12 bytes for each query and neighbour.
    ``ValueError`` as ``knn_predict``.
    """
    if len(bank_labels_N) != len(bank_ND):
        raise ValueError(f"{len(bank_labels_N)} labels of a bank of {len(bank_ND)} samples: give one a sample.")
    if min(ks) < 1 or not temperature > 0:
        raise ValueError(f"k={min(ks)}, temperature={temperature}: both must be above 0.")
    if len(bank_ND) < max(ks):
        raise ValueError(f"k={max(ks)} neighbours from a bank of {len(bank_ND)}: give a smaller k.")
    if int(bank_labels_N.min()) < 0:
        raise ValueError("the bank holds samples without a label (-1): leave them out.")
    similarity_MK, nearest_MK = nearest(bank_ND, query_MD, max(ks), distance)
    if bool(similarity_MK.isnan().any()):  # a sample that is not finite comes before all others
        raise ValueError("the bank or the queries hold a value that is not finite: leave it out.")
    classes = int(bank_labels_N.max()) + 1
    ranks: list[list[Tensor]] = [[] for _ in ks]
    rows = max(1, SIMILARITIES // (4 * max(classes, max(ks))))
    for similarity_QK, nearest_QK in zip(similarity_MK.split(rows), nearest_MK.split(rows), strict=True):
        if distance == "cosine":
            # Relative to the nearest: the order of the votes is the same, and no temperature overflows.
            weight_QK = ((similarity_QK - similarity_QK[:, :1]) / temperature).exp()
        else:
            weight_QK = 1 / (-similarity_QK + EPSILON)
        label_QK = bank_labels_N[nearest_QK]
        for k, found in zip(ks, ranks, strict=True):
            votes_QC = weight_QK.new_zeros(len(weight_QK), classes).scatter_add_(1, label_QK[:, :k], weight_QK[:, :k])
            found.append(votes_QC.topk(min(TOP, classes), dim=1).indices)
    return [torch.cat(found) for found in ranks]


@torch.no_grad()
def nearest(bank_ND: Tensor, query_MD: Tensor, k: int, distance: Distance = "cosine") -> tuple[Tensor, Tensor]:
    """(similarity_MK, index_MK) of the ``k`` nearest in the bank, nearest first: cosine, or the negative distance.

    The bank is walked once, in blocks, each against blocks of queries, whose best so far are merged with the block's.
    """
    cosine = distance == "cosine"
    rows = min(len(bank_ND), max(k, min(BANK_ELEMENTS // bank_ND.shape[1], SIMILARITIES // QUERIES)))
    kept = (
        query_MD.new_full((len(query_MD), k), -torch.inf),
        torch.zeros(len(query_MD), k, dtype=torch.int64, device=query_MD.device),
    )
    block_QB = query_MD.new_empty(min(QUERIES, len(query_MD)) * rows)
    for start in range(0, len(bank_ND), rows):
        bank_BD = bank_ND[start : start + rows]
        bank_BD, bias_B = (F.normalize(bank_BD, dim=1), None) if cosine else (bank_BD, -bank_BD.square().sum(1) / 2)
        for first in range(0, len(query_MD), QUERIES):
            query_QD = query_MD[first : first + QUERIES]
            query_QD = F.normalize(query_QD, dim=1) if cosine else query_QD
            out_QB = block_QB[: len(query_QD) * len(bank_BD)].view(len(query_QD), len(bank_BD))
            if bias_B is None:
                torch.mm(query_QD, bank_BD.T, out=out_QB)
            else:  # q.b - |b|^2 / 2 orders as the distance does
                torch.addmm(bias_B, query_QD, bank_BD.T, out=out_QB)
            best = out_QB.topk(min(k, len(bank_BD)), dim=1)
            _merge(tuple(each[first : first + QUERIES] for each in kept), best.values, best.indices + start)
    similarity_MK, index_MK = kept
    if not cosine:
        squared_M1 = query_MD.square().sum(1, keepdim=True)
        similarity_MK = -(squared_M1 - 2 * similarity_MK).clamp_min_(0).sqrt_()
    return similarity_MK, index_MK


def _merge(kept: tuple[Tensor, ...], values_QK: Tensor, index_QK: Tensor) -> None:
    """The best of those kept and of these, in place of those kept."""
    similarity_QK, nearest_QK = kept
    values_QK, index_QK = torch.cat([similarity_QK, values_QK], 1), torch.cat([nearest_QK, index_QK], 1)
    best = values_QK.topk(similarity_QK.shape[1], dim=1)
    similarity_QK.copy_(best.values)
    nearest_QK.copy_(index_QK.gather(1, best.indices))


def accuracy(predictions_M: Tensor, labels_M: Tensor) -> float:
    """Share of correct predictions, in percent."""
    return float((predictions_M == labels_M).float().mean() * 100)
