"""What tells where a remote file's samples lie, without the images themselves: a file of the same size with holes.

Of a ``.beton`` that is what lies before and after its pages. Of a tar file it is all headers and small members that are
no images; where an index and a manifest tell of its samples, the headers of the first and the last one suffice.
Formats open such a file as they open a whole one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from tarfile import TarError, TarInfo

import numpy as np

from fastvicreg.pipelines.fetch import download
from fastvicreg.pipelines.fetch.remote import Remote, RemoteFile
from fastvicreg.pipelines.formats.beton import layout as beton
from fastvicreg.pipelines.formats.listing import is_image
from fastvicreg.pipelines.formats.shards import tarfiles
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.stalls import NEVER

SMALL = 1 << 20
"""Bytes of the largest member that is kept for what it may tell of a sample."""
_PATH = re.compile(rb"\d+ path=([^\n]*)\n")
Write = Callable[[int, bytes], object]
"""(offset, bytes)."""


class NestedError(Exception):
    """A tar file of tar files, which is read whole."""


def write_structure(remote: Remote, file: RemoteFile, place: Path, index: bytes | None) -> int:
    """Write the structure of ``file`` to ``place``, which appears when it is complete; returns the bytes that came.

    ``index``: the text of a tar file's index where a manifest knows its samples, so that little has to be read.
    ``UserError`` where it cannot be read, ``NestedError`` for a tar file of tar files.
    """
    draft = place.with_name(f"{place.name}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    came = 0

    def read(start: int, end: int) -> bytes:
        nonlocal came
        end = min(end, file.size)
        # In parts, each of which has its own time: the metadata of a million samples are 70 MB.
        parts = [remote.read(file, at, min(end, at + download.CHUNK)) for at in range(start, end, download.CHUNK)]
        data = b"".join(parts)
        came += len(data)
        os.pwrite(handle, data, start)
        return data

    try:
        os.ftruncate(handle, file.size)
        if place.suffix != ".tar":
            _beton(read, file.size)
        elif index is not None:
            _ends(read, index)
        else:
            came += _walk(remote, file, lambda offset, data: os.pwrite(handle, data, offset))
    finally:
        os.close(handle)
    os.replace(draft, place)
    return came


def _beton(read: Callable[[int, int], bytes], size: int) -> None:
    """All but the pages; of what is no sound ``.beton`` as much as its reader needs to tell."""
    first = read(0, beton.HEADER.itemsize)
    if len(first) < beton.HEADER.itemsize:
        return
    header = np.frombuffer(first, beton.HEADER, 1)[0]
    start = len(first) + int(header["fields"]) * beton.DESCRIPTOR.itemsize
    descriptors = read(len(first), start)
    if len(descriptors) < start - len(first):
        return
    kinds = np.frombuffer(descriptors, beton.DESCRIPTOR)["type"].tolist()
    if all(kind in beton.FIELDS for kind in kinds):
        read(start, min(start + int(header["samples"]) * beton.metadata_dtype(kinds).itemsize, size))
    read(min(int(header["table"]) or size, size), size)


def _ends(read: Callable[[int, int], bytes], index: bytes) -> None:
    """The headers of the members that the index's first and last line name."""
    lines = index.decode("utf-8", "surrogateescape").split("\n")[1:-1]
    for line in dict.fromkeys(lines[:1] + lines[-1:]):
        for start in line.split(" ")[1::4]:
            if start.isdecimal() and int(start) >= tarfiles.BLOCK:
                read(int(start) - tarfiles.BLOCK, int(start))


def _walk(remote: Remote, file: RemoteFile, write: Write) -> int:
    """All headers, and what they head where that is small and no image, of a tar file read once in its order."""
    chunk = download.CHUNK

    def read(number: int) -> bytes:
        return remote.read(file, number * chunk, min(file.size, (number + 1) * chunk))

    walk = _Walk(write)
    numbers = range(-(-file.size // chunk))
    parts: Generator[bytes] = in_order(
        read, numbers, workers=download.AHEAD, chunk=1, name="fastvicreg-fetch", stall=NEVER
    )
    with closing(parts):
        for data in parts:
            walk.feed(data)
    return file.size


class _Walk:
    """Takes a tar file part by part."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._data, self._base = b"", 0  # bytes not done with, and where they begin
        self._at = 0  # of the next header
        self._name = ""  # which a header before gives to the next member
        self._first = True

    def feed(self, data: bytes) -> None:
        """The next bytes of the file; ``NestedError`` where its first member is a tar file."""
        self._data += data
        end = self._base + len(self._data)
        while self._at + tarfiles.BLOCK <= end:
            header = self._part(self._at, tarfiles.BLOCK)
            if not any(header):
                self._at += tarfiles.BLOCK
                continue
            try:
                member = TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except TarError:  # damaged: kept for its reader to tell
                self._write(self._at, header)
                self._at += tarfiles.BLOCK
                continue
            body, size = self._at + tarfiles.BLOCK, 0 if member.type in tarfiles.EMPTY else member.size
            name = self._name or member.name
            keep = size <= SMALL and not (member.isreg() and is_image(name.rpartition("/")[2]))
            if keep and body + size > end:
                break  # the rest comes with the next part
            if member.isreg() and self._first and name.endswith(".tar"):
                raise NestedError(name)
            self._first = self._first and not member.isreg()
            content = self._part(body, size) if keep else b""
            self._write(self._at, header + content)
            self._name = _name_for_next(member, content)
            self._at = body + -(-size // tarfiles.BLOCK) * tarfiles.BLOCK
        done = min(self._at, end)
        self._data, self._base = self._data[done - self._base :], done

    def _part(self, start: int, size: int) -> bytes:
        return self._data[start - self._base : start - self._base + size]


def _name_for_next(member: TarInfo, content: bytes) -> str:
    """The name of the next member that GNU's or pax's header before it holds, where ``member`` is such a one."""
    if member.type == b"L":
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    if member.type == b"x" and (found := _PATH.search(content)):
        return found[1].decode("utf-8", "surrogateescape")
    return ""
