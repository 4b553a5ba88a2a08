"""How an image becomes crops on the device."""

from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.sources import open_source

__all__ = ["build_engine", "open_source"]
