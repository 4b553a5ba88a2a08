"""How an image becomes crops on the device."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvicreg.pipelines.engines import build_engine
    from fastvicreg.pipelines.loader import ViewLoader
    from fastvicreg.pipelines.sources import open_source

__all__ = ["ViewLoader", "build_engine", "open_source"]
_PLACES = {"ViewLoader": "loader", "build_engine": "engines", "open_source": "sources"}


def __getattr__(name: str) -> Any:
    # Imported on demand: the command line reads the settings of pairs before it loads torch.
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
