"""Samples of remote files kept on this disk up to a bound, each with its checksum, for all processes of this machine.

There is no replacement: an epoch takes each sample once, in an order of its own, so that of N samples a store that
holds C gives C / N whichever they are, and none is written twice.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import struct
import threading
from pathlib import Path

import numpy as np

from fastvicreg.pipelines.manifest import digest

LEFT_FREE = 1 << 30
"""Bytes of the disk that are left to others."""
_COUNT = struct.Struct("<Q")
_ENTRY = np.dtype([("start", "<u8"), ("hash", "<u8")])  # hash 0: not kept

log = logging.getLogger(__name__)


class Store:
    """One file that only grows, to ``limit`` bytes at most, shared by the datasets of one address."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        self._samples, self._used = (
            os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for name in ("samples", "used")
        )
        self._lock = threading.Lock()  # flock parts processes, not the threads that share a descriptor
        self._full = False

    def add(self, data: bytes) -> int | None:
        """Where ``data`` was written; None where there is no room for it."""
        if self._full:
            return None
        try:
            start = self._take(len(data))
            if start is not None:
                os.pwrite(self._samples, data, start)
            return start
        except OSError as error:
            log.warning("no more samples are kept in %s: %s.", self.folder, error.strerror or error)
            self._full = True
            return None

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start``; fewer where the file is shorter."""
        return os.pread(self._samples, size, start)

    def _take(self, size: int) -> int | None:
        with self._lock:
            fcntl.flock(self._used, fcntl.LOCK_EX)
            try:
                told = os.pread(self._used, _COUNT.size, 0)
                used = _COUNT.unpack(told)[0] if len(told) == _COUNT.size else 0
                if used + size > self._limit or shutil.disk_usage(self.folder).free - size < LEFT_FREE:
                    return None
                os.pwrite(self._used, _COUNT.pack(used + size), 0)
                return used
            finally:
                fcntl.flock(self._used, fcntl.LOCK_UN)


class Kept:
    """Those of N samples that are in a store; safe to be used by several threads and processes."""

    def __init__(self, store: Store, key: str, size_N: np.ndarray) -> None:
        """``key`` tells this dataset from others of the store."""
        self._store, self._size_N = store, size_N
        place = store.folder / f"entries-{key}"
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(handle, len(size_N) * _ENTRY.itemsize)
        os.close(handle)
        self._entry_N = np.asarray(np.memmap(place, _ENTRY, "r+"))

    def __len__(self) -> int:
        return int(np.count_nonzero(self._entry_N["hash"]))

    def missing(self, index_B: np.ndarray) -> np.ndarray:
        """Those of the samples ``index_B`` that are not kept."""
        return index_B[self._entry_N["hash"][index_B] == 0]

    def get(self, index: int) -> bytes | None:
        """The sample's bytes; None where they are not kept, or not as they were written."""
        start, expected = self._entry_N[index].tolist()
        if not expected:
            return None
        data = self._store.read(start, int(self._size_N[index]))
        if _hash(data) == expected:
            return data
        self._entry_N["hash"][index] = 0  # a machine that stopped in mid-write, or a disk that errs
        return None

    def put(self, index: int, data: bytes) -> None:
        """Keep the sample's bytes where there is room."""
        start = self._store.add(data)
        if start is not None:
            self._entry_N["start"][index] = start
            self._entry_N["hash"][index] = _hash(data)


def _hash(data: bytes) -> int:
    return digest(data) or 1
