"""Written bytes on their way to the disk in the background, so that the sync at the end finds little to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

FLUSH = 16 << 20
"""Bytes after which the disk is set to work."""


class Flusher:
    """One flush at a time, of one file after another."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastvicreg-flush")
        self._pending: Future[None] | None = None
        self._flushed = 0

    def written(self, handle: int, end: int) -> None:
        """The file is written up to ``end``: flush it if that is worth it and the disk is idle; ``OSError``."""
        if end - self._flushed >= FLUSH and (self._pending is None or self._pending.done()):
            self._submit(os.fdatasync, handle)
            self._flushed = end

    def complete(self, handle: int) -> None:
        """Nothing more comes: flush the file and close it; what is written next begins at 0. ``OSError``."""
        self._submit(_sync_and_close, handle)
        self._flushed = 0

    def wait(self) -> None:
        """Wait for the flush under way; ``OSError`` of what it failed with, which the disk tells only once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def _submit(self, work: Callable[[int], None], handle: int) -> None:
        self.wait()
        self._pending = self._pool.submit(work, handle)


def _sync_and_close(handle: int) -> None:
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
