"""Weighted k-nearest-neighbour classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from fastvicreg.contracts import Source


@dataclass(frozen=True)
class KNN:
    """By the labels of the nearest training images, weighted by their similarity."""

    k: int = 20
    """Neighbours."""
    temperature: float = 0.07
    """Temperature of the weights."""

    def check(self, bank: Source) -> None:
        """``UserError`` for the first setting that ``bank`` cannot serve."""
        if not 1 <= self.k <= len(bank):
            raise UserError(f"--k {self.k}: give between 1 and the bank's {len(bank)} images.")
        if not self.temperature > 0:
            raise UserError(f"--temperature {self.temperature}: give more than 0.")

    def choose(self, labels_N: Tensor, *, seed: int) -> None:
        """The whole bank."""

    def predict(self, bank_ND: Tensor, labels_N: Tensor, query_MD: Tensor) -> Tensor:
        """See ``evaluate.knn.knn_predict``."""
        from fastvicreg.evaluate.knn import knn_predict

        return knn_predict(bank_ND, labels_N, query_MD, self.k, self.temperature)
