"""Tells the kernel which samples of a mapped file come next, so that it reads them while others are decoded."""

from __future__ import annotations

import mmap

import numpy as np

from fastvicreg.pipelines.mapped import libc

WINDOW = 128 << 10
"""Bytes a hint: of a longer one Linux reads no more than the device's read-ahead, which is this by default."""


class PageHints:
    """Hints for N samples that lie at ``address_N`` (int64, in memory) and have ``size_N`` bytes."""

    def __init__(self, address_N: np.ndarray, size_N: np.ndarray) -> None:
        page = mmap.PAGESIZE
        address_N, size_N = address_N.astype(np.int64), size_N.astype(np.int64)
        self._first_N = address_N & -page
        self._last_N = (address_N + size_N + page - 1) & -page

    def __call__(self, index_B: np.ndarray) -> None:
        """Start reading the samples ``index_B`` and return; pages in memory already cost next to nothing."""
        for start, end in self.runs(index_B):
            for at in range(start, end, WINDOW):
                # Refused, it was a hint only: the page fault that follows tells of what is wrong.
                libc.madvise(at, min(WINDOW, end - at), mmap.MADV_WILLNEED)

    def runs(self, index_B: np.ndarray) -> list[tuple[int, int]]:
        """(first, after the last) address of the whole pages that hold the samples, neighbouring ones joined."""
        if not len(index_B):
            return []
        order = np.argsort(self._first_N[index_B])
        first, last = self._first_N[index_B][order], np.maximum.accumulate(self._last_N[index_B][order])
        begins = np.flatnonzero(np.concatenate(([True], first[1:] > last[:-1])))
        ends = np.append(begins[1:], len(first)) - 1
        return list(zip(first[begins].tolist(), last[ends].tolist(), strict=True))
