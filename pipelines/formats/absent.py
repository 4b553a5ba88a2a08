"""What is said of data that are not there: what was meant, by the name, and what lies beside with a similar one."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path

from fastvicreg.errors import UserError
from fastvicreg.pipelines.formats.listing import (
    ARCHIVES,
    BETON_ENDINGS,
    TABLE_ENDINGS,
    TAR_ENDINGS,
    ending_of,
    is_folder,
    is_image,
    is_shown,
    path_exists,
)
from fastvicreg.pipelines.unfinished import partial_of

IMAGES = "a folder of images or of class folders, a .beton file, or tar shards"
SIMILAR = 0.7
"""Least share of two names' letters that must agree, their endings left out."""
_FILE_ADDRESS = re.compile(r"(?:^|/)file:/+(.+)", re.IGNORECASE)
"""As a ``Path`` leaves it, which may have been taken from the working folder on."""
MOST = 5_000
"""Entries of a folder that are compared."""


def require_there(path: Path, wanted: str = IMAGES) -> None:
    """``UserError`` where there is nothing at ``path``; it offers what has a similar name, else says ``wanted``."""
    if path_exists(path):
        return
    if (found := _FILE_ADDRESS.search(str(path))) is not None:
        raise UserError(f"{found[0].lstrip('/')} is an address of this machine: give its path, /{found[1]}.")
    said = f"the {_kind(path.name)} {path} does not exist"
    if path.is_symlink():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist: give {wanted}.")
    if path_exists(partial_of(path)):
        raise UserError(f"{said}: {partial_of(path)} is its unfinished conversion, which the same command continues.")
    missing = next((above for above in reversed(path.parents) if not path_exists(above)), path)
    if missing != path:
        said += f", nor does the folder {missing}"
    if (near := _similar(missing, file=missing == path)) is None:
        raise UserError(f"{said}: give {wanted}.")
    whole = near / path.relative_to(missing)
    raise UserError(f"{said}: did you mean {whole if path_exists(whole) else near}?")


def require_folder(path: Path, wanted: str = IMAGES) -> None:
    """``UserError`` where ``path`` is no folder."""
    require_there(path, wanted)
    if not path.is_dir():
        raise UserError(f"{path} is a file, not a folder: give {wanted}.")


def _kind(name: str) -> str:
    """What a path of this name would be."""
    ending = ending_of(name)
    if ending in BETON_ENDINGS:
        return f"{ending} file"
    if ending in TAR_ENDINGS:
        return "tar file"
    if _is_archive(name):
        return "compressed tar file"
    if ending in TABLE_ENDINGS:
        return f"{ending[1:]} file"
    return "image file" if is_image(name) else "folder"


def _is_archive(name: str) -> bool:
    ending = ending_of(name)
    return ending == ".tgz" or (ending in ARCHIVES and ending_of(name[: -len(ending)]) in TAR_ENDINGS)


def _similar(path: Path, *, file: bool) -> Path | None:
    """What lies beside ``path`` and has a similar name: a folder, and where a ``file`` may be meant one with data."""
    name = path.name.casefold()
    stems = {_stem(name), os.path.splitext(name)[0]}  # the ending itself may be the mistake
    found: list[tuple[float, float, str]] = []
    for other in _beside(path.parent, files=file):
        share = max(_alike(stem, _stem(other.casefold())) for stem in stems)
        if share >= SIMILAR:
            found.append((share, _alike(name, other.casefold()), other))
    return path.with_name(max(found)[-1]) if found else None


def _alike(name: str, other: str) -> float:
    """The share of two names' letters that agree."""
    return SequenceMatcher(None, name, other).ratio()


def _beside(folder: Path, *, files: bool) -> Iterator[str]:
    """Names in ``folder`` that may be data; none where it cannot be listed: that is not what is told of here."""
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, MOST):
                as_file = files and _stem(entry.name) != entry.name
                if as_file or (is_shown(entry.name) and not entry.name.endswith(".partial") and is_folder(entry)):
                    yield entry.name
    except OSError:
        return


def _stem(name: str) -> str:
    """``name`` without an ending of data; a dot in a folder's name, as in "v1.5", is none."""
    if _is_archive(name):
        return name[: -len(ending_of(name))].removesuffix(".tar")
    ending = ending_of(name)
    return name[: -len(ending)] if ending in BETON_ENDINGS | TAR_ENDINGS | TABLE_ENDINGS else name
