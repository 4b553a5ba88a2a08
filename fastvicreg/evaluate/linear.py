"""A linear classifier on frozen features, trained to convergence; also on a few labels a class."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.optim import spare_the_compiler


class LogisticRegression(NamedTuple):
    """A linear classifier of features standardised by the training set's statistics."""

    weight_CD: Tensor
    bias_C: Tensor
    mean_D: Tensor
    std_D: Tensor

    def scores(self, query_MD: Tensor) -> Tensor:
        """logits_MC."""
        return F.linear((query_MD - self.mean_D) / self.std_D, self.weight_CD, self.bias_C)


def fit_linear(train_ND: Tensor, labels_N: Tensor, *, l2: float = 1e-3, iterations: int = 100) -> LogisticRegression:
    """Multinomial logistic regression by L-BFGS; ``l2`` is the penalty on the weights beside the mean cross-entropy."""
    mean_D, std_D = train_ND.mean(0), train_ND.std(0).clamp_min(1e-6)
    train_ND = (train_ND - mean_D) / std_D
    device = train_ND.device
    weight = torch.zeros(int(labels_N.max()) + 1, train_ND.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(len(weight), device=device, requires_grad=True)
    spare_the_compiler()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(train_ND, weight, bias), labels_N) + l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return LogisticRegression(weight.detach(), bias.detach(), mean_D, std_D)


def linear_predict(
    train_ND: Tensor, labels_N: Tensor, query_MD: Tensor, *, l2: float = 1e-3, iterations: int = 100
) -> Tensor:
    """predictions_M, int64, by ``fit_linear``."""
    return fit_linear(train_ND, labels_N, l2=l2, iterations=iterations).scores(query_MD).argmax(1)


def few_labels(labels_N: Tensor, per_class: int, *, seed: int = 0) -> Tensor:
    """Indices of ``per_class`` samples of every class, drawn without replacement.

    ``ValueError`` where a class has fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels_N.unique():
        members = (labels_N == label).nonzero().flatten()
        if len(members) < per_class:
            raise ValueError(f"{per_class} labels a class asked for, but class {int(label)} has {len(members)}.")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class].to(members.device)])
    return torch.cat(chosen)
