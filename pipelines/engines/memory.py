"""The host memory that batches of crops are written into: page-locked for a device, else used again and again."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch

KEPT = 8
"""Free buffers kept at most: more than an engine has batches under way by default."""


class PixelMemory:
    """uint8 tensors whose memory comes back once nobody holds the tensor, or a view of it, any more.

    Fresh memory costs a page fault and a zeroing by the kernel for every page: 4 % of a CPU engine's time.
    """

    def __init__(self, *, pin: bool) -> None:
        self._pin = pin
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of any content, which the caller writes in full."""
        if self._pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)  # torch keeps freed pinned memory itself
        size = math.prod(shape)
        try:
            while (buffer := self._free.pop()).size != size:
                pass  # of another image size or batch: not wanted again
        except IndexError:
            buffer = np.empty(size, np.uint8)  # numpy asks for huge pages, torch does not
        lent = buffer[:]
        weakref.finalize(lent, self._give_back, buffer).atexit = False
        return torch.from_numpy(lent).view(shape)

    def take_all(self, shapes: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, ...]:
        """The same for several tensors in one memory, which comes back once none of them is held."""
        counts = [math.prod(shape) for shape in shapes]
        parts = self.take((sum(counts),)).split(counts)
        return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    def _give_back(self, buffer: np.ndarray) -> None:
        if len(self._free) < KEPT:
            self._free.append(buffer)
