"""The samples of a tar file: from an index where there is one, else by walking its headers, once for all runs.

An index is looked for beside the tar file (``x.idx``, ``x.tar.idx``) and in a folder ``idx`` or ``index`` there. What a
walk finds is kept in the cache folder under the tar file's path, size and time, so that another file is never taken
for it. Unlike an index, a walk joins members of the same key wherever they lie in the tar file.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from fastvicreg.caches import cache_folder
from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines.formats.shards import tarfiles

FOLDERS = ("", "idx", "index")
WORTH_KEEPING = 1000
"""Samples of a tar file from which on its walk is kept."""
WORTH_TELLING = 1000
"""Samples from which on a person is told what walking to them took."""


@dataclass
class Effort:
    """What walking tar files has cost."""

    files: set[Path] = field(default_factory=set)
    samples: int = 0
    headers: int = 0  # members, each of which costs a read of the disk where they are larger than its read-ahead
    seconds: float = 0.0

    def add(self, tar: Path, rows: list[list[tarfiles.Component]], seconds: float) -> None:
        """Count the first walk of ``tar``; of a second one its pages are in memory."""
        if tar not in self.files:
            self.files.add(tar)
            self.samples += len(rows)
            self.headers += sum(map(len, rows))
            self.seconds += seconds

    def told(self) -> str:
        """In words; "" where it was little."""
        if self.samples < WORTH_TELLING:
            return ""
        thousands, one = self.samples / 1000, len(self.files) == 1
        count = "1 tar file without an index was" if one else f"{len(self.files):,} tar files without an index were"
        return (
            f"{count} walked: {self.headers:,} headers in {self.seconds:.1f} s ({self.headers / thousands:,.0f} reads "
            f"and {self.seconds / thousands:.2g} s a thousand samples)"
        )


def index_beside(tar: Path) -> Path | None:
    """The index that somebody made of ``tar``."""
    names = (f"{tar.stem}.idx", f"{tar.name}.idx")
    places = (tar.parent / folder / name for folder in FOLDERS for name in names)
    return next((place for place in places if place.is_file()), None)


def walked(tar: Path, mapped: memoryview, effort: Effort | None = None) -> tuple[list[tarfiles.Table], bytes]:
    """(samples, the text of an index of them) of a tar file without an index; ``DamagedError`` where it is cut.

    ``effort`` counts what it costs, where it is not kept from an earlier time.
    """
    kept = _kept(tar)
    if kept is not None and kept.is_file():
        with contextlib.suppress(OSError, UserError):  # a cut file is made anew
            text = kept.read_bytes()
            return tarfiles.read_index(kept, text), text
    began = time.perf_counter()
    rows = list(samples_of(tar, mapped))
    if effort is not None:
        effort.add(tar, rows, time.perf_counter() - began)
    text = tarfiles.index_text([f"{' '.join(map(_member, row))}\n" for row in rows])
    tables = tarfiles.tables(tar, rows)
    blank = any(set(member.name) & set(" \n") for row in rows for member in row)
    if kept is not None and len(rows) >= WORTH_KEEPING and not blank:
        _keep(kept, text)
    return tables, text


def samples_of(where: Path, mapped: memoryview) -> Iterator[list[tarfiles.Component]]:
    """The members of each sample, those of the same key joined, in the order in which the keys come.

    A key that comes again with an extension it had is another sample. ``DamagedError`` where the file ends within a
    member, or holds what is no member.
    """
    found: dict[str, dict[str, tarfiles.Component]] = {}
    done: list[dict[str, tarfiles.Component]] = []
    for member in members_of(where, mapped):
        key = tarfiles.key_of(member.name)
        sample = found.get(key)
        if sample is None or member.extension in sample:
            sample = found[key] = {}
            done.append(sample)
        sample[member.extension] = member
    for sample in done:
        yield list(sample.values())


def members_of(where: Path, mapped: memoryview) -> Iterator[tarfiles.Component]:
    """The regular members that belong to samples, in the file's order; hidden files, links and folders do not.

    ``DamagedError`` where the file ends within a member, a header leads backwards, or there is what is no header;
    ``UserError`` for a sparse member, whose bytes do not lie one after another.
    """
    at = 0
    try:
        for member in _headers(mapped):
            # Of a negative size tarfile makes a step backwards, and walks the same headers for ever.
            if member.size < 0 or member.offset < at:
                raise DamagedError(
                    f"{where} is damaged after byte {at}: {member.name} is said to have {member.size} bytes, or to lie "
                    "within another member; copy it again."
                )
            if member.issparse():
                raise UserError(f"{where}: {member.name} is a sparse member, which is not read: pack it without -S.")
            size = member.size if member.isreg() else 0
            at = member.offset_data + -(-size // tarfiles.BLOCK) * tarfiles.BLOCK
            if member.offset_data + size > len(mapped):
                raise DamagedError(
                    f"{where} is cut short: {member.name} would end at byte {member.offset_data + size}, the file ends "
                    f"at {len(mapped)}; copy it again."
                )
            stem, dot, extension = member.name.rpartition("/")[2].partition(".")
            if size and stem and dot:
                yield tarfiles.Component(extension.lower(), member.offset_data, size, member.name)
    except tarfile.TarError as error:
        raise DamagedError(f"{where} is damaged after byte {at} ({error}): copy it again.") from error
    if any(mapped[at : at + tarfiles.BLOCK]):
        raise DamagedError(f"{where} is damaged: the {tarfiles.BLOCK} bytes at {at} are no tar header; copy it again.")


def _headers(mapped: memoryview) -> Iterator[tarfile.TarInfo]:
    if len(mapped):
        with tarfile.open(fileobj=_Reader(mapped), mode="r:") as file:  # type: ignore[call-overload]
            yield from file


class _Reader:
    """A file object over mapped memory that copies no more than what is read."""

    def __init__(self, mapped: memoryview) -> None:
        self._mapped, self._at = mapped, 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._mapped) if size < 0 else self._at + size
        data = bytes(self._mapped[self._at : end])
        self._at += len(data)
        return data

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        self._at = at + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._mapped)}[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def _member(member: tarfiles.Component) -> str:
    return f"{member.extension} {member.start} {member.size} {member.name}"


def _kept(tar: Path) -> Path | None:
    """Where the walk of this state of the file is kept; None where it is no file of its own."""
    try:
        status = tar.stat()
    except OSError:
        return None
    name = xxh3_64_hexdigest(f"{tar.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "replace"))
    return cache_folder() / "indices" / f"{name}.idx"


def _keep(path: Path, text: bytes) -> None:
    """Write the file whole or not at all; a cache that cannot be written is no reason to stop."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        os.replace(draft, path)
