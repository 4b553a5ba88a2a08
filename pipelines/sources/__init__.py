"""Random access to encoded images, whatever holds them."""

from __future__ import annotations

import os
from pathlib import Path

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import DecodeError, decode_rgb
from fastvicreg.pipelines.manifest import manifest_path
from fastvicreg.pipelines.sources.beton import BetonSource
from fastvicreg.pipelines.sources.folder import FolderSource, image_extensions
from fastvicreg.pipelines.sources.shards import ShardSource

VALIDATION_NAMES = ("val", "test")
SHARD_ENDINGS = (".tar", ".idx")


def open_source(path: str | Path) -> Source:
    """Open the images at ``path``: a folder of images, of class folders or of tar shards, or a ``.beton`` file.

    ``UserError`` where there is nothing to read.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix in SHARD_ENDINGS:
            raise UserError(f"{path} is one shard: give the folder {path.parent}, which is read as a whole.")
        return BetonSource(path)
    return ShardSource(path) if _holds_shards(path) else FolderSource(path)


def refuse_splits(path: str | Path, command: str) -> None:
    """``UserError`` where ``path`` holds train/ beside val/ or test/: as one dataset their images would be mixed."""
    train, validation = find_splits(path)
    if validation is not None:
        raise UserError(
            f"{path} holds {train.name}/ and {validation.name}/, two datasets: {command} each by itself, "
            f"such as {train}."
        )


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


def _holds_shards(folder: Path) -> bool:
    """Whether the folder is one of shards: tar files with indices or our manifest, or tar files alone."""
    if not folder.is_dir():
        return False
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return False  # FolderSource tells of it
    endings = {os.path.splitext(entry.name)[1].lower() for entry in entries if entry.is_file()}
    if endings.issuperset(SHARD_ENDINGS) or manifest_path(folder).is_file():
        return True
    return ".tar" in endings and not endings & image_extensions() and not any(entry.is_dir() for entry in entries)
