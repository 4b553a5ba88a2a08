"""How an image becomes crops on the device."""

from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.loader import ViewLoader
from fastvicreg.pipelines.sources import open_source

__all__ = ["ViewLoader", "build_engine", "open_source"]
