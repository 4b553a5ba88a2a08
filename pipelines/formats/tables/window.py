"""Values of a column that is read forwards alone, for threads that ask for them nearly in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

LEAST = 2048
"""Rows kept at least; a thread of a conversion may be so far behind another."""


class Window:
    """The last rows that were read; what lies before them is read again from ``batches(first)``, which may be slow."""

    def __init__(self, batches: Callable[[int], Iterator[tuple[int, Any]]], rows: int = 0) -> None:
        """``batches(first)`` yields (row of the first value, values) from a row not after ``first`` on."""
        self._batches = batches
        self._most = rows or max(LEAST, 64 * len(os.sched_getaffinity(0)))
        self._kept: deque[tuple[int, Sequence[Any]]] = deque()
        self._held = 0
        self._iterator: Iterator[tuple[int, Any]] | None = None
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> Any:
        """The value of ``row``; ``IndexError`` beyond the last."""
        with self._lock:
            if self._iterator is None or not self._kept or row < self._kept[0][0]:
                self._start(row)
            while not self._kept or row >= self._kept[-1][0] + len(self._kept[-1][1]):
                self._read()
            for first, values in reversed(self._kept):
                if row >= first:
                    return values[row - first]
        raise AssertionError(row)

    def _start(self, row: int) -> None:
        self._kept.clear()
        self._held = 0
        self._iterator = iter(self._batches(row))

    def _read(self) -> None:
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise IndexError("beyond the last row") from None
        except BaseException:
            self._iterator = None  # a generator that raised yields nothing more
            raise
        self._kept.append(batch)
        self._held += len(batch[1])
        while len(self._kept) > 1 and self._held - len(self._kept[0][1]) >= self._most:
            self._held -= len(self._kept.popleft()[1])
