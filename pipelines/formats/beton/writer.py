"""Writes a ``.beton`` of the fields "image" (RGB) and "label" (int), as FFCV's RGBImageField and IntField read them."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import numpy as np

from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.flush import Flusher
from fastvicreg.pipelines.convert.journal import write_all
from fastvicreg.pipelines.convert.prepare import Sample, Stored
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.formats.beton import layout
from fastvicreg.pipelines.manifest import index_digest

FIELDS = (("image", layout.RGB_FIELD), ("label", layout.INT_FIELD))


class BetonWriter:
    """Samples in order, each at the first place of its page or after the sample before it.

    Room for ``capacity`` rows of metadata is left before the pages, since how many are skipped is known only at the
    end. A sample larger than a page doubles the page size from there on: pages being powers of two, no sample written
    before straddles a larger one.
    """

    ending = ".beton"
    shuffled = False

    def __init__(self, data: Path, capacity: int, settings: Settings) -> None:
        self._data = data
        self._page = self._asked = settings.page_size
        self._row = layout.metadata_dtype([kind for _, kind in FIELDS])
        self._start = layout.HEADER.itemsize + len(FIELDS) * layout.DESCRIPTOR.itemsize
        self._end = _up(self._start + capacity * self._row.itemsize, self._page)
        self._pointers = array("Q")
        self._handle = os.open(data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._flusher = Flusher()

    def resume(self, entries_N: np.ndarray) -> None:
        for size in entries_N["size"].tolist():
            self._place(size)
        if len(entries_N) and os.fstat(self._handle).st_size < self._end:
            raise UserError(
                f"the unfinished conversion {self._data} is shorter than its journal says: delete {self._data.parent}."
            )
        os.ftruncate(self._handle, self._end if len(entries_N) else 0)

    def add(self, sample: Sample) -> None:
        start = self._place(len(sample.payload))
        write_all(self._handle, sample.payload, start)
        self._flusher.written(self._handle, self._end)

    def sync(self) -> None:
        self._flusher.wait()
        os.fdatasync(self._handle)

    def finish(self, entries_N: np.ndarray) -> int:
        pointers_N = np.frombuffer(self._pointers, np.uint64)
        metadata = np.zeros(len(entries_N), self._row)
        image = metadata["f0"]
        image["mode"] = np.where(entries_N["stored"] == Stored.RAW, layout.RAW, layout.JPG)
        image["width"], image["height"], image["data_ptr"] = entries_N["width"], entries_N["height"], pointers_N
        metadata["f1"] = entries_N["label"]
        allocations = np.zeros(len(entries_N), layout.ALLOCATION)
        allocations["sample"] = np.arange(len(entries_N))
        allocations["ptr"], allocations["size"] = pointers_N, entries_N["size"]
        table = _up(self._end, self._page)
        header = np.array((layout.VERSION, len(FIELDS), self._page, len(entries_N), table), layout.HEADER)
        index = header.tobytes() + layout.field_descriptors(FIELDS) + metadata.tobytes()
        # FFCV reads whole pages: the last one is filled up with zeros before the table.
        os.ftruncate(self._handle, table)
        write_all(self._handle, allocations.tobytes(), table)
        write_all(self._handle, index, 0)
        os.fsync(self._handle)
        return index_digest(index, allocations.tobytes())

    def notes(self) -> tuple[str, ...]:
        if self._page == self._asked:
            return ()
        return (f"a page holds {self._page >> 20} MiB instead of {self._asked >> 20} MiB: a sample did not fit",)

    def close(self) -> None:
        self._flusher.close()
        os.close(self._handle)

    def _place(self, size: int) -> int:
        """The offset of the next sample of ``size`` bytes."""
        while size > self._page:
            self._page *= 2
        start = self._end
        if start // self._page != (start + size - 1) // self._page:
            start = _up(start, self._page)
        self._end = start + size
        self._pointers.append(start)
        return start


def _up(offset: int, page: int) -> int:
    return -(-offset // page) * page
