"""Protocols of evaluation, by name: what is made of an encoder and labels. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fastvicreg.registry import resolve_class

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastvicreg.datasets import Datasets
    from fastvicreg.evaluate.subject import Classifier, Subject

PROTOCOLS = {
    "knn": "fastvicreg.evaluate.protocols.knn:KNN",
    "linear": "fastvicreg.evaluate.protocols.linear:Linear",
    "semi": "fastvicreg.evaluate.protocols.semi:Semi",
    "finetune": "fastvicreg.evaluate.protocols.finetune:Finetune",
    "retrieval": "fastvicreg.evaluate.protocols.retrieval:Retrieval",
    "svm": "fastvicreg.evaluate.protocols.svm:SVM",
}
"""Names to the class of their settings: a frozen dataclass whose file imports no torch; its docstring is the help."""


@runtime_checkable
class ClassifyingProtocol(Protocol):
    """One that says which class a query is of."""

    def check(self, subject: Subject) -> None:
        """``UserError`` for the first setting that cannot be served, before anything is computed."""
        ...

    def fit(self, subject: Subject, told: Callable[[str], None]) -> list[Classifier]:
        """Learn from the bank; ``told`` shows a line."""
        ...


@runtime_checkable
class MeasuringProtocol(Protocol):
    """One whose figures are no accuracies."""

    def check(self, subject: Subject) -> None:
        """As ``ClassifyingProtocol.check``."""
        ...

    def measure(self, subject: Subject, told: Callable[[str], None]) -> list[dict[str, Any]]:
        """Rows of figures, in percent."""
        ...


@runtime_checkable
class OwnData(Protocol):
    """A protocol that reads data of its own layout."""

    def open_data(self, path: str) -> Datasets | None:
        """Both splits; None where ``path`` is an ordinary data set."""
        ...


def protocol_class(name: str) -> type[Any]:
    """The settings' class of the protocol ``name``; ``UserError`` with the nearest name where there is none."""
    return resolve_class("protocol", name, PROTOCOLS)
