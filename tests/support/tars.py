"""Tar shards as other people's programs write them, for the tests."""

from __future__ import annotations

import contextlib
import io
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

from images import encoded, photo

Member = tuple[str, bytes]


def members(count: int, first: int = 0) -> list[Member]:
    """KEY.jpg, KEY.cls and KEY.cls.i32 of ``count`` samples; sample n is of class n % 3."""
    found: list[Member] = []
    for number in range(first, first + count):
        key, label = f"{number:05d}", number % 3
        found += [
            (f"{key}.jpg", encoded(photo(number, 40 + number % 5, 30))),
            (f"{key}.cls", str(label).encode()),
            (f"{key}.cls.i32", struct.pack("<i", label)),
        ]
    return found


def write_tar(path: Path, entries: Sequence[Member | tarfile.TarInfo], kind: int = tarfile.USTAR_FORMAT) -> None:
    """A tar file of regular members; a ``TarInfo`` is written as it is, without bytes."""
    with tarfile.open(path, "w", format=kind) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            tar.addfile(info, io.BytesIO(entry[1]))


def index_with_wds2idx(tar: Path, index: Path) -> None:
    """DALI's own index of ``tar``."""
    from wds2idx import IndexCreator

    with contextlib.redirect_stdout(io.StringIO()), IndexCreator(str(tar), str(index)) as creator:
        creator.create_index()


def index_by_tarfile(tar: Path, index: Path) -> None:
    """The same where DALI is not installed, from Python's tarfile."""
    samples: dict[str, list[str]] = {}
    with tarfile.open(tar) as file:
        for member in file:
            if member.isreg():
                folder, slash, file = member.name.rpartition("/")
                stem, _, extension = file.partition(".")
                key = folder + slash + stem
                place = f"{extension} {member.offset_data} {member.size} {member.name}"
                samples.setdefault(key, []).append(place)
    lines = [" ".join(places) for places in samples.values()]
    index.write_text("\n".join([f"v1.2 {len(lines)}", *lines, ""]))


def write_shard(
    folder: Path, name: str, entries: Sequence[Member | tarfile.TarInfo], kind: int = tarfile.USTAR_FORMAT
) -> None:
    """``name``.tar and its index below ``folder``."""
    folder.mkdir(exist_ok=True)
    write_tar(folder / f"{name}.tar", entries, kind)
    index_by_tarfile(folder / f"{name}.tar", folder / f"{name}.idx")
