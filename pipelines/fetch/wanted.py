"""Which files are brought here: those that hold images, and what tells of them."""

from __future__ import annotations

from pathlib import PurePosixPath

from fastvicreg.pipelines.formats.listing import ARCHIVES, BETON_ENDINGS, NO_DATA, TABLE_ENDINGS, TAR_ENDINGS

BESIDE = frozenset({".idx", ".manifest"})
"""Of indices and manifests, which belong to data beside them."""


def is_wanted(name: str) -> bool:
    """Whether a file of this name, relative to what is asked for, is data, an index or a manifest.

    Nothing hidden is, nor what lies in a folder that a program left.
    """
    place = PurePosixPath(name)
    if any(part.startswith(".") or part in NO_DATA for part in place.parts):
        return False
    return is_data(name) or place.suffix.lower() in BESIDE


def is_data(name: str) -> bool:
    """Whether a file of this name holds images."""
    return PurePosixPath(name).suffix.lower() in TAR_ENDINGS | BETON_ENDINGS | TABLE_ENDINGS or is_archive(name)


def is_archive(name: str) -> bool:
    """Whether a file of this name is a compressed tar file."""
    place = PurePosixPath(name.lower())
    return place.suffix == ".tgz" or (place.suffix in ARCHIVES and place.stem.endswith(".tar"))


def unpacked_name(name: str) -> str:
    """The name of a compressed tar file once it is unpacked."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.tar" if ending.lower() == "tgz" else stem
