"""Tensors between guard pages, so that a kernel that leaves its arrays is caught."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

import numpy as np
import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
GUARD = 1 << 20
"""Bytes before and behind an array's pages that may not be touched."""
PROT_NONE = 0
CANARY = 0xFF
"""In the bytes between an array and its guard pages: a read of them gives NaN, a write shows."""
ALIGNMENT = 512
"""Bytes, as torch's CUDA allocator aligns. A copy ends at most this far from the page behind it."""

_libc = ctypes.CDLL(None, use_errno=True)
_regions: dict[int, Region] = {}


class Region:
    """Pages that may be touched, between others that may not."""

    def __init__(self, span_bytes: int, shift: int) -> None:
        inner = -(-(span_bytes + ALIGNMENT) // PAGE) * PAGE
        self.bytes = np.frombuffer(mmap.mmap(-1, inner + 2 * GUARD), np.uint8)
        self.base = int(self.bytes.ctypes.data)
        self.first = GUARD + (inner - span_bytes - shift) // ALIGNMENT * ALIGNMENT + shift
        self.last = self.first + span_bytes
        self.end = GUARD + inner
        self.bytes[GUARD : self.end] = CANARY
        for page in (0, self.end):
            if _libc.mprotect(ctypes.c_void_p(self.base + page), ctypes.c_size_t(GUARD), PROT_NONE):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def canaries(self) -> tuple[np.ndarray, np.ndarray]:
        return self.bytes[GUARD : self.first], self.bytes[self.last : self.end]


def guarded(tensor: Tensor, *, shift: int = 0) -> Tensor:
    """A copy with the same strides, in pages of its own, that starts ``shift`` bytes off an aligned address."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    region = Region((span if tensor.numel() else 0) * tensor.element_size(), shift)
    own = region.bytes[region.first : region.last]
    _regions[region.base] = region
    weakref.finalize(own, _regions.pop, region.base)  # the tensor and its views keep ``own``, and so the record
    flat = torch.from_numpy(own).view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor) if tensor.numel() else flat.view(tensor.shape)


def is_guarded(tensor: Tensor) -> bool:
    """Whether its first element lies in an array that ``guarded`` made."""
    address = tensor.data_ptr()
    return any(r.base + GUARD <= address < r.base + r.end for r in _regions.values())


def repair() -> bool:
    """Whether a byte around any guarded array was written; afterwards none is."""
    damaged = False
    for canary in (canary for region in _regions.values() for canary in region.canaries()):
        damaged |= bool((canary != CANARY).any())
        canary.fill(CANARY)
    return damaged
