"""What a folder holds at first sight, without listing all of it: folders, images, tar files, .beton files, tables."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from fastvicreg.errors import UserError

NOT_IMAGES = frozenset({"MPEG", "HDF5", "GRIB", "BUFR", "WMF", "EPS", "PDF"})
"""Formats Pillow only identifies, or needs another program for."""
BETON_ENDINGS = frozenset({".beton", ".ffcv"})
ARCHIVES = {".gz": "gunzip", ".tgz": "gunzip", ".zst": "unzstd", ".xz": "unxz", ".bz2": "bunzip2"}
"""Endings of compressed tar files, and what unpacks them: none gives access to a sample without all before it."""
TAR_ENDINGS = frozenset({".tar"})
TABLE_ENDINGS = frozenset({".parquet", ".arrow"})
NO_DATA = frozenset({"__MACOSX", "_tmp", "@eaDir", "__pycache__", "lost+found"})
"""Folders that archivers, file servers and download programs leave beside the data."""
FEW_ENTRIES, FEW_FOLDERS = 1000, 50
"""How much of a folder is looked at before it is taken for one without data."""


@cache
def image_extensions() -> frozenset[str]:
    """Lower-case file endings of all types that Pillow reads, such as ".jpeg"."""
    Image.init()
    readable = set(Image.OPEN) - NOT_IMAGES
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in readable)


def ending_of(name: str) -> str:
    """The file's ending in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return not name.startswith(".") and ending_of(name) in image_extensions()


def is_shown(name: str) -> bool:
    """Whether a folder of this name is looked into: not a hidden one, nor one that a program left behind."""
    return not name.startswith(".") and name not in NO_DATA


def scan(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The entries of ``folder``; ``UserError`` where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise UserError(
            f"cannot list the folder {folder}: {error.strerror}; give read access to it, or move it out of the data."
        ) from error


def path_exists(path: Path) -> bool:
    """Whether there is anything at ``path``; ``UserError`` where a folder above it may not be entered."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give access to the folder it lies in.") from error


def identity(folder: str | Path) -> tuple[int, int]:
    """What tells one folder from another, by whatever path it is reached; ``UserError`` where it cannot be read."""
    try:
        place = os.stat(folder)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; give access to the folder it lies in.") from error
    return place.st_dev, place.st_ino


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder or a link to one; a link that leads nowhere or to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a file or a link to one; a link that leads nowhere or to itself is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def leads_back(entry: os.DirEntry[str], folder: str | Path) -> bool:
    """Whether the entry of ``folder`` is a link to ``folder`` or to one that holds it."""
    return entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve())


@dataclass(frozen=True)
class Listing:
    """The entries of one folder by what they are, each sorted."""

    folders: tuple[str, ...]
    tars: tuple[str, ...]
    betons: tuple[str, ...]
    tables: tuple[str, ...]  # parquet and arrow files
    images: bool
    indices: bool  # of tar files

    @property
    def data(self) -> bool:
        """Whether the folder itself holds images, tar files, .beton files or tables."""
        return self.images or bool(self.tars or self.betons or self.tables)


def list_folder(folder: Path, *, to_first_image: bool = False) -> Listing:
    """All entries of ``folder``, or those up to the first image; ``UserError`` where it cannot be listed.

    A folder that holds images directly is no container of datasets, so that its other entries do not matter.
    """
    folders, tars, betons, tables, images, indices = [], [], [], [], False, False
    for entry in scan(folder):
        ending = ending_of(entry.name)
        if ending in image_extensions() and is_image(entry.name) and is_file(entry):
            images = True
            if to_first_image:
                break
        elif ending in TAR_ENDINGS and not entry.name.startswith(".") and is_file(entry):
            tars.append(entry.name)
        elif ending in BETON_ENDINGS and not entry.name.startswith(".") and is_file(entry):
            betons.append(entry.name)
        elif ending in TABLE_ENDINGS and not entry.name.startswith(".") and is_file(entry):
            tables.append(entry.name)
        elif ending == ".idx":
            indices = True
        elif is_shown(entry.name) and is_folder(entry) and not leads_back(entry, folder):
            folders.append(entry.name)
    for names in (folders, tars, betons, tables):
        names.sort()
    return Listing(tuple(folders), tuple(tars), tuple(betons), tuple(tables), images, indices)


def holds_data(folder: Path) -> bool:
    """Whether an image, tar, .beton, parquet or arrow file is seen among the first of ``folder`` and of those below."""
    pending, seen = [folder], set()
    for _ in range(FEW_FOLDERS):
        if not pending:
            return False
        below = pending.pop(0)
        if (place := identity(below)) in seen:  # a link that leads back
            continue
        seen.add(place)
        for entry in itertools.islice(scan(below), FEW_ENTRIES):
            ending = ending_of(entry.name)
            if is_image(entry.name) or ending in TAR_ENDINGS | BETON_ENDINGS | TABLE_ENDINGS:
                if is_file(entry):
                    return True
            elif is_shown(entry.name) and is_folder(entry):
                pending.append(Path(entry.path))
    return False
