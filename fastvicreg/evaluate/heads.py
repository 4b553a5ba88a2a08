"""Linear classifiers on one encoder's features, several at once: R learning rates cost one pass over the features.

B batch, M queries, D features, C classes, R classifiers.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.evaluate.knn import TOP

HeadKind = Literal["linear", "bn-linear"]

CHUNK = 4096
"""Queries that are classified at once."""


class Heads(nn.Module):
    """R classifiers that begin alike and share nothing but the statistics of their batch norm, if they have one.

    Weights are drawn from N(0, .01), biases are 0 (facebookresearch/vicreg evaluate.py). "bn-linear" normalises the
    features first, as vissl's eval_mlp head: without it the paper's Places205 and iNaturalist figures do not reproduce.
    """

    def __init__(self, features: int, classes: int, count: int, kind: HeadKind = "linear", *, seed: int = 0) -> None:
        super().__init__()
        drawn_CD = torch.empty(classes, features).normal_(0, 0.01, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.ParameterList(drawn_CD.clone() for _ in range(count))
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in range(count))
        self.norm = nn.BatchNorm1d(features, affine=False) if kind == "bn-linear" else None
        affine = count if self.norm is not None else 0
        self.scales = nn.ParameterList(torch.ones(features) for _ in range(affine))
        self.shifts = nn.ParameterList(torch.zeros(features) for _ in range(affine))

    def parameters_of(self, number: int) -> list[nn.Parameter]:
        """What the classifier of that number learns."""
        lists = (self.weights, self.biases, self.scales, self.shifts)
        return [each[number] for each in lists if len(each)]

    def one(self, number: int) -> Heads:
        """A copy of the classifier of that number, by itself."""
        classes, features = self.weights[number].shape
        copied = Heads(features, classes, 1, "linear" if self.norm is None else "bn-linear")
        copied.to(self.weights[number].device)
        with torch.no_grad():
            for mine, other in zip(copied.parameters_of(0), self.parameters_of(number), strict=True):
                mine.copy_(other)
            for mine, other in zip(copied.buffers(), self.buffers(), strict=True):
                mine.copy_(other)
        return copied

    def forward(self, x_BD: Tensor) -> Tensor:
        """logits_BRC."""
        weight_RCD, bias_RC = torch.stack(list(self.weights)), torch.stack(list(self.biases))
        if self.norm is not None:
            x_BD = self.norm(x_BD)
            bias_RC = bias_RC + torch.stack([w @ b for w, b in zip(self.weights, self.shifts, strict=True)])
            weight_RCD = weight_RCD * torch.stack(list(self.scales))[:, None]
        return F.linear(x_BD, weight_RCD.flatten(0, 1), bias_RC.flatten()).unflatten(1, bias_RC.shape)

    @torch.no_grad()
    def rank(self, query_MD: Tensor, allowed_A: Tensor | None = None) -> Tensor:
        """The best classes by each classifier, best first: int64 (R, M, up to 5); of ``allowed_A`` alone, if given."""
        was_training = self.training
        self.eval()
        tops = []
        for chunk_QD in query_MD.split(CHUNK):
            tops.append(best_classes(self(chunk_QD), allowed_A))
        self.train(was_training)
        return torch.cat(tops).transpose(0, 1)


def best_classes(scores_xC: Tensor, allowed_A: Tensor | None = None) -> Tensor:
    """Up to 5 classes of the highest scores, best first, along the last dimension; of ``allowed_A`` alone, if given."""
    if allowed_A is not None:
        allowed_A = allowed_A.to(scores_xC.device)
        return allowed_A[scores_xC[..., allowed_A].topk(min(TOP, len(allowed_A)), dim=-1).indices]
    return scores_xC.topk(min(TOP, scores_xC.shape[-1]), dim=-1).indices
