"""What frozen features are worth. Importing this imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvicreg.evaluate.knn import knn_predict
    from fastvicreg.evaluate.linear import linear_predict

__all__ = ["knn_predict", "linear_predict"]

_HOMES = {"knn_predict": "fastvicreg.evaluate.knn", "linear_predict": "fastvicreg.evaluate.linear"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
