"""Random access to encoded images, whatever holds them."""

from __future__ import annotations

from pathlib import Path

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import DecodeError, decode_rgb
from fastvicreg.pipelines.sources.beton import BetonSource
from fastvicreg.pipelines.sources.folder import FolderSource

VALIDATION_NAMES = ("val", "test")


def open_source(path: str | Path) -> Source:
    """Open the images at ``path``: a folder of images or of class folders, or a ``.beton`` file.

    ``UserError`` where there is nothing to read.
    """
    return BetonSource(path) if Path(path).is_file() else FolderSource(path)


def find_splits(path: str | Path) -> tuple[Path, Path | None]:
    """(training data, validation data) below ``path``: its train/ and val/ (or test/), or itself."""
    root = Path(path)
    train = root / "train"
    if not train.is_dir():
        return root, None
    return train, next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)


def require_readable(source: Source, where: str, tries: int = 100) -> None:
    """``UserError`` where none of the first ``tries`` samples is a readable image."""
    first = ""
    for index in range(min(tries, len(source))):
        try:
            decode_rgb(source.encoded(index))
            return
        except (DecodeError, OSError) as error:
            first = first or f"{source.name(index)}: {error}"
    raise UserError(f"no readable image among the first {min(tries, len(source))} in {where} (first: {first}).")
