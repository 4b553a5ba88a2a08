"""Linear support vector machines, a class each: the paper's protocol for Pascal VOC 2007."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.datasets import Datasets
    from fastvicreg.evaluate.subject import Subject

COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
"""Of vissl's voc07 svm configuration, which the paper takes."""
FOLDS = 3


@dataclass(frozen=True)
class SVM:
    """By a linear SVM for each class on frozen features, as the paper on VOC07: mean average precision.

    --data takes VOC's folder (VOC2007: Annotations, ImageSets, JPEGImages), a CSV of image, split and labels, or class
    folders. Needs scikit-learn.
    """

    costs: tuple[float, ...] = COSTS
    """Costs C, of which each class takes the one of the best average precision in 3-fold cross-validation."""

    def open_data(self, path: str) -> Datasets | None:
        """Images of several classes, where ``path`` holds such."""
        from fastvicreg.evaluate.multilabel import open_multilabel

        return open_multilabel(path)

    def check(self, subject: Subject) -> None:
        """``UserError`` where scikit-learn is missing, a cost cannot be, or a class has too few images."""
        from importlib.util import find_spec

        from fastvicreg.evaluate.multilabel import targets_of

        if find_spec("sklearn") is None:
            raise UserError("eval svm needs scikit-learn: pip install 'fastvicreg[eval]', or pip install scikit-learn.")
        for cost in self.costs:
            if not 0 < cost < float("inf"):
                raise UserError(f"--costs {cost:g}: give finite numbers above 0.")
        if not self.costs:
            raise UserError("--costs needs a value: give one or several numbers.")
        for name, targets_C in zip(subject.classes, targets_of(subject.bank, subject.classes).T, strict=True):
            there, absent = int((targets_C == 1).sum()), int((targets_C != 1).sum())
            if min(there, absent) < FOLDS:
                raise UserError(
                    f"the class {name!r} has {there} training images and {absent} that are not of it: the "
                    f"cross-validation needs {FOLDS} of each."
                )

    def measure(self, subject: Subject, told: Callable[[str], None]) -> list[dict[str, Any]]:
        """One row: ``map`` and each class's average precision."""
        from fastvicreg.evaluate.multilabel import targets_of
        from fastvicreg.evaluate.support_vectors import average_precisions

        bank, queries = subject.features()
        targets_NC, answers_MC = (targets_of(each, subject.classes) for each in (subject.bank, subject.queries))
        asked_C = (answers_MC == 1).any(0)
        if not asked_C.any():
            raise UserError("no image to evaluate is of any class: give a test split with labels.")
        classes = [name for name, asked in zip(subject.classes, asked_C, strict=True) if asked]
        if left_out := [name for name in subject.classes if name not in classes]:
            shown = ", ".join(map(repr, left_out[:3])) + (" ..." if len(left_out) > 3 else "")
            told(f"{len(left_out)} classes of which no image is asked for are left out of the mean: {shown}")
        features = bank.features_NF.cpu().numpy(), queries.features_NF.cpu().numpy()
        found = average_precisions(features[0], targets_NC[:, asked_C], features[1], answers_MC[:, asked_C], self.costs)
        rows: list[dict[str, Any]] = [{"class": "mean", "average_precision": sum(ap for ap, _ in found) / len(found)}]
        for name, (precision, cost) in zip(classes, found, strict=True):
            rows.append({"class": name, "average_precision": precision, "cost": cost})
        return rows
