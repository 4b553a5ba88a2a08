"""Logistic regression to convergence; not the paper's linear protocol, which trains by SGD on augmented images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastvicreg.errors import UserError
from fastvicreg.evaluate.labels import too_few

if TYPE_CHECKING:
    from torch import Tensor

    from fastvicreg.contracts import Source


@dataclass(frozen=True)
class Linear:
    """By logistic regression (L-BFGS) on features of centre crops."""

    labels_per_class: int = 0
    """Labels a class that it may see; 0: all."""

    def check(self, bank: Source) -> None:
        """``UserError`` for the first setting that ``bank`` cannot serve."""
        if self.labels_per_class < 0:
            raise UserError(f"--labels-per-class {self.labels_per_class}: give 0 for all, or more.")
        if self.labels_per_class and (reason := too_few(bank, self.labels_per_class)):
            raise UserError(f"--labels-per-class {self.labels_per_class}: {reason}")

    def choose(self, labels_N: Tensor, *, seed: int) -> Tensor | None:
        """A few labels of every class, drawn by ``seed``."""
        from fastvicreg.evaluate.linear import few_labels

        return few_labels(labels_N, self.labels_per_class, seed=seed) if self.labels_per_class else None

    def predict(self, bank_ND: Tensor, labels_N: Tensor, query_MD: Tensor) -> Tensor:
        """See ``evaluate.linear.linear_predict``."""
        from fastvicreg.evaluate.linear import linear_predict

        return linear_predict(bank_ND, labels_N, query_MD)
