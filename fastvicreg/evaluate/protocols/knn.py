"""Weighted k-nearest-neighbour classification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from fastvicreg.evaluate.subject import Classifier, Ranked, Subject

DEFAULT = (10, 20, 100, 200)
PUBLISHED = 20
"""The neighbours of the paper's Table 11, which has 200 too."""


@dataclass(frozen=True)
class KNN:
    """By the labels of the nearest training images, weighted by their similarity; every k in one pass."""

    k: tuple[int, ...] = DEFAULT
    """Neighbours, one or several; of the default those that the training images are enough for."""
    temperature: float = 0.07
    """Temperature T of the weights exp(s / T) of a cosine similarity s."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """euclidean: weights 1 / (d + 1e-5) of the distance d, as solo-learn's online kNN."""

    def check(self, subject: Subject) -> None:
        """``UserError`` for the first setting that the bank cannot serve."""
        bank = len(subject.bank)
        if not self.k:
            raise UserError("--k needs a value: give one or several numbers of neighbours.")
        for k in self.k if self.k != DEFAULT else DEFAULT[:1]:
            if not 1 <= k <= bank:
                raise UserError(f"--k {k}: give between 1 and the bank's {bank} images.")
        if not self.temperature > 0:
            raise UserError(f"--temperature {self.temperature}: give more than 0.")

    def fit(self, subject: Subject, told: Callable[[str], None]) -> list[Classifier]:
        """See ``evaluate.knn.knn_rank``."""
        from fastvicreg.evaluate.knn import knn_rank
        from fastvicreg.evaluate.subject import Classifier, Ranked

        bank, _ = subject.features()
        ks = tuple(k for k in dict.fromkeys(self.k) if k <= len(bank.labels_N))
        if left_out := [str(k) for k in self.k if k not in ks]:
            told(f"k {', '.join(left_out)}: left out, the bank has {len(bank.labels_N)} images")

        def rank(query_MD: Tensor, allowed_A: Tensor | None) -> list[Ranked]:
            bank_ND, labels_N = bank.features_NF, bank.labels_N
            if allowed_A is not None:
                kept_N = (labels_N[:, None] == allowed_A.to(labels_N.device)).any(1)
                bank_ND, labels_N = bank_ND[kept_N], labels_N[kept_N]
            within = tuple(k for k in ks if k <= len(labels_N)) or (len(labels_N),)
            ranks = knn_rank(bank_ND, labels_N, query_MD, within, self.temperature, self.distance)
            return [Ranked({"k": k}, top_MK, k == PUBLISHED) for k, top_MK in zip(within, ranks, strict=True)]

        return [Classifier(rank)]
