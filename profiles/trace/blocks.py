"""A file's text in blocks, unpacked where it is a gzip file; what can be had of one that is cut off or damaged."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastvicreg.errors import UserError

BLOCK = 1 << 20
"""Bytes of text at a time: some 4,000 events."""
_PACKED = 1 << 18
_SALVAGED = 32


@dataclass
class Ending:
    """How a file ends: ``cut`` too early, or with the ``damage`` at which nothing more can be unpacked."""

    cut: bool = False
    damage: str | None = None


def blocks(path: Path, ending: Ending) -> Generator[bytes, None, None]:
    """The file's text in blocks, the next one unpacked by a thread of its own while one is worked on.

    ``ending`` is complete after the last one. ``UserError`` where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            source = _unpacked(file, ending) if packed else iter(lambda: file.read(BLOCK), b"")
            with ThreadPoolExecutor(1) as ahead:
                coming = ahead.submit(next, source, b"")
                while block := coming.result():
                    coming = ahead.submit(next, source, b"")
                    yield block
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from None


def _unpacked(file: IO[bytes], ending: Ending) -> Iterator[bytes]:
    """The text of a gzip file of one or more members, up to where it was cut off or is damaged."""
    member = zlib.decompressobj(31)
    packed = file.read(_PACKED)
    while packed:
        before = member.copy()
        try:
            text = member.decompress(packed, BLOCK)
        except zlib.error as error:
            ending.damage = str(error).rpartition(": ")[2]
            if text := _before_damage(before, packed):
                yield text
            return
        if text:
            yield text
        packed = member.unconsumed_tail or (member.unused_data.lstrip(b"\0") if member.eof else b"")
        packed = packed or file.read(_PACKED)
        if member.eof and packed:
            member = zlib.decompressobj(31)
    ending.cut |= not member.eof


def _before_damage(member: Any, packed: bytes) -> bytes:
    """What can be unpacked of a piece that is damaged: less than ``BLOCK``, where unpacking all of that failed."""
    found = []
    for first in range(0, len(packed), _SALVAGED):
        try:
            found.append(member.decompress(packed[first : first + _SALVAGED]))
        except zlib.error:
            break
    return b"".join(found)
