"""Protocols of evaluation, by name: what is made of frozen features and labels. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from fastvicreg.registry import resolve_class

if TYPE_CHECKING:
    from torch import Tensor

    from fastvicreg.contracts import Source

PROTOCOLS = {
    "knn": "fastvicreg.evaluate.protocols.knn:KNN",
    "linear": "fastvicreg.evaluate.protocols.linear:Linear",
}
"""Names to the class of their settings."""


class FrozenProtocol(Protocol):
    """A frozen dataclass of a protocol's settings, whose file imports no torch; its docstring is the command's help."""

    def check(self, bank: Source) -> None:
        """``UserError`` for the first setting that ``bank`` cannot serve, before anything is computed."""
        ...

    def choose(self, labels_N: Tensor, *, seed: int) -> Tensor | None:
        """Indices of the bank's samples that are used; None: all."""
        ...

    def predict(self, bank_ND: Tensor, labels_N: Tensor, query_MD: Tensor) -> Tensor:
        """predictions_M, int64."""
        ...


def protocol_class(name: str) -> type[Any]:
    """The settings' class of the protocol ``name``; ``UserError`` with the nearest name where there is none."""
    return resolve_class("protocol", name, PROTOCOLS)
