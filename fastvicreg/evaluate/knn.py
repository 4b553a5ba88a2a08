"""Weighted k-nearest-neighbour classification of frozen features, as the self-supervised literature reports it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def knn_predict(
    bank_ND: Tensor, bank_labels_N: Tensor, query_MD: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Predict each query's class by its ``k`` nearest in the bank, by cosine similarity s with weight exp(s / T).

    Returns predictions_M, int64. Source: Wu et al. 2018 section 3.4, as DINO's eval_knn.py and VICReg's Table 11.
    ``ValueError`` where the bank holds fewer than ``k`` samples or a label below 0, or the temperature is not above 0.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(f"k={k}, temperature={temperature}: both must be above 0.")
    if len(bank_ND) < k:
        raise ValueError(f"k={k} neighbours from a bank of {len(bank_ND)}: give a smaller k.")
    if int(bank_labels_N.min()) < 0:
        raise ValueError("the bank holds samples without a label (-1): leave them out.")
    bank_ND, query_MD = F.normalize(bank_ND, dim=1), F.normalize(query_MD, dim=1)
    classes = int(bank_labels_N.max()) + 1
    predictions = []
    for chunk_CD in query_MD.split(1024):  # bounds the similarity matrix
        similarity_CK, nearest_CK = (chunk_CD @ bank_ND.T).topk(k, dim=1)
        votes = torch.zeros(len(chunk_CD), classes, device=bank_ND.device)
        # Relative to the nearest: the order of the votes is the same, and no temperature overflows.
        weight_CK = ((similarity_CK - similarity_CK[:, :1]) / temperature).exp()
        votes.scatter_add_(1, bank_labels_N[nearest_CK], weight_CK)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def accuracy(predictions_M: Tensor, labels_M: Tensor) -> float:
    """Share of correct predictions, in percent."""
    return float((predictions_M == labels_M).float().mean() * 100)
