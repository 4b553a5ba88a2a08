"""Files of a source that were replaced under their old names since a conversion stored them.

Of the files whose time of change (ctime, which copying and renaming set too) is later than the manifest's, the content
is compared: the stored bytes are the file's own, or those that it would be stored as. A source that is no folder of
images is compared as a whole where one of its files is later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.prepare import prepare
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.manifest import Manifest, digest
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.patterns import expand, is_pattern

Replaced = Literal["refuse", "take", "keep"]
"""What is done where files were replaced: nothing, they are stored in place of the old ones, or these stay."""
TICK = 2.0
"""Seconds that the clocks of two file systems may differ by."""


def replaced_in(
    source: Source, path: Path, manifest: Manifest, written: Path, settings: Settings, workers: int = 0
) -> dict[int, int]:
    """{place in the manifest: index in ``source``} of the samples whose content is another by now.

    ``written``: the manifest's file, whose time is that of the conversion.
    """
    place = {name: at for at, name in enumerate(manifest.paths)}
    old = [place.get(source.name(index), -1) for index in range(len(source))]
    known = [index for index, at in enumerate(old) if at >= 0]
    suspects = list(_later(source, path, known, os.stat(written).st_mtime - TICK))
    forms = _forms(settings)

    def differs(number: int) -> bool:
        index = suspects[number]
        return not is_same(source, index, int(manifest.hash_N[old[index]]), forms)

    found = in_order(differs, range(len(suspects)), workers=workers)
    return {old[index]: index for index, other in zip(suspects, found, strict=True) if other}


def require_unreplaced(replaced: Sequence[str], source: Path, target: Path, *, shards: bool, how: Replaced) -> None:
    """``UserError`` where files were replaced, and nobody said what is to be done, or it cannot be."""
    if not replaced or how == "keep" or (how == "take" and not shards):
        return
    count = "1 file" if len(replaced) == 1 else f"{len(replaced):,} files"
    ways = "--replaced keep leaves what is stored"
    ways += ", a conversion of the whole takes them (shards only grow)" if shards else ", --replaced take stores them"
    was = "was" if len(replaced) == 1 else "were"
    raise UserError(f"--append: {count} of {source} {was} replaced since {target} was written (such as "
                    f"{replaced[0]}): {ways}.")  # fmt: skip


def _later(source: Source, path: Path, indices: list[int], since: float) -> Iterator[int]:
    """Those of the samples whose file has changed since then."""
    if indices and path.is_dir() and os.path.isfile(path / source.name(indices[0])):
        yield from (index for index in indices if _changed(path / source.name(index)) > since)
        return
    files = expand(path) if is_pattern(path) else path.rglob("*") if path.is_dir() else [path]
    if any(_changed(file) > since for file in files):
        yield from indices


def _changed(file: Path) -> float:
    try:
        return os.stat(file).st_ctime
    except OSError:  # its conversion would tell
        return np.inf


def _forms(settings: Settings) -> list[Settings]:
    """In which a sample may have been stored: --proportion draws by a place that is not known any more."""
    if settings.proportion is None:
        return [settings]
    alike = replace(settings, proportion=None)
    return [alike, replace(alike, raw=True, reencode=False)]


def is_same(source: Source, index: int, expected: int, forms: list[Settings]) -> bool:
    """Whether a sample is still the one that was written, by its bytes or as one of ``forms`` makes them."""
    try:
        if digest(source.encoded(index)) == expected:
            return True
    except OSError:
        return True  # what cannot be read replaces nothing
    stored: Callable[[Settings], int] = lambda form: prepare(source, index, form).hash  # noqa: E731
    return any(stored(form) == expected for form in forms)
