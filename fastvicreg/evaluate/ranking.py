"""Average precision, and retrieval by it. N samples of the bank, M queries, D features, Q queries at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.evaluate.features import Features

ELEMENTS = 8 << 20
"""Of the block of similarities that is sorted at once."""


def average_precision(relevant_QN: Tensor) -> Tensor:
    """precision_Q: the mean, over the relevant ones, of the precision at each one's rank; answers come best first.

    ``relevant_QN`` is bool; a query without any relevant answer has 0.
    """
    found_QN = relevant_QN.cumsum(1, dtype=torch.float64)
    rank_N = torch.arange(1, relevant_QN.shape[1] + 1, device=relevant_QN.device, dtype=torch.float64)
    precision_QN = found_QN / rank_N
    return (precision_QN * relevant_QN).sum(1) / relevant_QN.sum(1).clamp_min(1)


@torch.no_grad()
def retrieval(bank: Features, queries: Features, ranks: Sequence[int]) -> dict[str, float]:
    """In percent: ``recall@K``, an image of the query's class being among the K nearest by cosine, and ``map``.

    ``map`` is the mean over queries of the average precision over the whole bank.
    """
    bank_ND = F.normalize(bank.features_NF, dim=1)
    hits, precision = dict.fromkeys(ranks, 0), 0.0
    rows = max(1, ELEMENTS // len(bank_ND))
    for query_QD, label_Q in zip(queries.features_NF.split(rows), queries.labels_N.split(rows), strict=True):
        order_QN = (F.normalize(query_QD, dim=1) @ bank_ND.T).argsort(dim=1, descending=True)
        relevant_QN = bank.labels_N[order_QN] == label_Q[:, None]
        for rank in ranks:
            hits[rank] += int(relevant_QN[:, :rank].any(1).sum())
        precision += float(average_precision(relevant_QN).sum())
    total = len(queries.labels_N)
    return {f"recall@{rank}": 100 * hit / total for rank, hit in hits.items()} | {"map": 100 * precision / total}
