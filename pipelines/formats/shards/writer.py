"""Writes a folder of tar shards with indices, as DALI's webdataset reader and the webdataset library read them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from xxhash import xxh3_64

from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.flush import Flusher
from fastvicreg.pipelines.convert.journal import write_all
from fastvicreg.pipelines.convert.prepare import Sample
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.convert.workspace import durable, sync_folder
from fastvicreg.pipelines.formats.shards import tarfiles


class ShardWriter:
    """Samples in order, numbered from 0; a shard ends where the next sample would make it larger than was asked for.

    A sample larger than that has a shard of its own. The indices are written at the end, from the journal alone.
    """

    ending = ""
    shuffled = True

    def __init__(self, data: Path, capacity: int, settings: Settings, shards: int = 0, samples: int = 0) -> None:
        """``shards`` and ``samples``: how many there are before the first of these."""
        self._data = data
        self._most = settings.shard_size
        self._before, self._samples = shards - 1, samples
        self._number = samples
        self._shard, self._end = self._before, 0
        self._handle = -1
        self._flusher = Flusher()
        data.mkdir(exist_ok=True)

    def resume(self, entries_N: np.ndarray) -> None:
        for shard, start, size in self._places(entries_N["size"].tolist()):
            if shard > self._shard > self._before:
                self._require(self._shard, tarfiles.tar_size(self._end), exactly=True)
            self._shard, self._end = shard, start + tarfiles.record_size(size)
        self._number = self._samples + len(entries_N)
        keep = {tarfiles.shard_names(number)[0] for number in range(self._before + 1, self._shard + 1)}
        for path in self._data.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self._shard > self._before:
            self._require(self._shard, self._end, exactly=False)
            self._open()
            os.ftruncate(self._handle, self._end)

    def add(self, sample: Sample) -> None:
        shard, start = self._next(self._shard, self._end, len(sample.payload))
        if shard > self._shard:
            self._complete()
            self._shard = shard
            self._open()
        before, after = tarfiles.record(self._number, sample.payload, sample.label)
        write_all(self._handle, before, start)
        write_all(self._handle, sample.payload, start + len(before))
        write_all(self._handle, after, start + len(before) + len(sample.payload))
        self._number += 1
        self._end = start + tarfiles.record_size(len(sample.payload))
        self._flusher.written(self._handle, self._end)

    def sync(self) -> None:
        self._flusher.wait()
        if self._handle >= 0:
            os.fdatasync(self._handle)
        sync_folder(self._data)  # the names of shards begun since

    def finish(self, entries_N: np.ndarray) -> int:
        self._complete()
        self._flusher.wait()
        digest, lines, current = xxh3_64(), [], self._before + 1
        labels = entries_N["label"].tolist()

        def write_index() -> None:
            text = tarfiles.index_text(lines)
            durable(self._data / tarfiles.shard_names(current)[1], text)
            digest.update(text)

        for number, (shard, start, size) in enumerate(self._places(entries_N["size"].tolist())):
            if shard > current:
                write_index()
                lines, current = [], shard
            lines.append(tarfiles.index_line(self._samples + number, start, size, labels[number]))
        write_index()
        sync_folder(self._data)
        return digest.intdigest()

    def notes(self) -> tuple[str, ...]:
        count = self._shard - self._before
        files = "one tar file" if count == 1 else f"{count:,} tar files"
        return (f"{files}, the samples shuffled over all: they may be read in order",)

    def close(self) -> None:
        self._flusher.close()
        if self._handle >= 0:
            os.close(self._handle)

    def _places(self, sizes: list[int]) -> Iterator[tuple[int, int, int]]:
        """(shard, offset in it, size) of each sample."""
        shard, end = self._before, 0
        for size in sizes:
            shard, start = self._next(shard, end, size)
            end = start + tarfiles.record_size(size)
            yield shard, start, size

    def _next(self, shard: int, end: int, size: int) -> tuple[int, int]:
        """(shard, offset) of a sample of ``size`` bytes that comes after offset ``end`` of ``shard``."""
        full = shard == self._before or (end > 0 and tarfiles.tar_size(end + tarfiles.record_size(size)) > self._most)
        return (shard + 1, 0) if full else (shard, end)

    def _open(self) -> None:
        path = self._data / tarfiles.shard_names(self._shard)[0]
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _complete(self) -> None:
        """Fill the open shard up with the zeros that end a tar file, and leave it to the disk."""
        if self._handle >= 0:
            os.ftruncate(self._handle, tarfiles.tar_size(self._end))
            self._flusher.complete(self._handle)
            self._handle = -1

    def _require(self, shard: int, size: int, *, exactly: bool) -> None:
        path = self._data / tarfiles.shard_names(shard)[0]
        found = path.stat().st_size if path.exists() else 0
        if found < size or (exactly and found > size):
            raise UserError(
                f"the unfinished conversion's {path} has {found} bytes, its journal says {size}: "
                f"delete {self._data.parent}."
            )
