"""What the ffcv engine's threads run with no GIL: each image decoded once by libturbojpeg, all its views cut from it.

FFCV's own ``imdecode`` asks libturbojpeg for the fast, inexact DCT; here the same library is asked for the exact one,
so that pixels equal the native engine's. Whatever is not plainly good is left undone and flagged for the host.
numba's cache notices a change in this file alone: touch it where the resample kernel is changed.

B batch, V views, S side of a view, J job: a row of int64 says what to do for a sample (``jobs``).
"""

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import binding
from numba import types
from numpy.typing import NDArray

from fastvicreg.caches import njit
from fastvicreg.kernels.resample.numba_impl import resample
from fastvicreg.pipelines.decode import MAX_PIXELS
from fastvicreg.pipelines.formats.beton.layout import RAW

SAMPLE = 0  # the job's first column; V windows of 2 x 4 numbers follow, then V flips
HOST = -1  # in place of a sample: nothing of it is to be read here
WINDOW = 8
YCBCR_OR_GRAY = 2  # libturbojpeg numbers RGB 0, YCbCr 1, gray 2, then CMYK and YCCK
RGB_PIXELS = 0
EXACT = 0  # no flag: accurate DCT, smooth upsampling

# The functions are linked by name, so that compiled code can be cached: an address would differ in every process.
_pointer, _size, _int = types.intp, types.uint64, types.int32
_init = types.ExternalFunction("tjInitDecompress", _pointer())
_destroy = types.ExternalFunction("tjDestroy", _int(_pointer))
_header = types.ExternalFunction(
    "tjDecompressHeader3", _int(_pointer, _pointer, _size, _pointer, _pointer, _pointer, _pointer)
)
_decompress = types.ExternalFunction(
    "tjDecompress2", _int(_pointer, _pointer, _size, _pointer, _int, _int, _int, _int, _int)
)


def link(library: ctypes.CDLL) -> None:
    """Make the libturbojpeg that ``library`` is linked with known to the compiler; before the first ``cut_views``."""
    for function in (_init, _destroy, _header, _decompress):
        address = ctypes.cast(getattr(library, function.symbol), ctypes.c_void_p).value
        assert address is not None, function.symbol
        binding.add_symbol(function.symbol, address)


def jobs(slot_B: NDArray[np.int64], window_BVA4: NDArray[np.int64], flip_BV: NDArray[np.bool_]) -> NDArray[np.int64]:
    """job_BJ, as ``cut_views`` reads it."""
    count, views = flip_BV.shape
    return np.concatenate([slot_B[:, None], window_BVA4.reshape(count, views * WINDOW), flip_BV], 1, dtype=np.int64)


@njit(nogil=True)
def _decode(
    handle: int,
    encoded: NDArray[np.uint8],
    width: np.int64,
    height: np.int64,
    pixels: NDArray[np.uint8],
    found: NDArray[np.int32],
) -> bool:
    """Fill ``pixels`` with the JPEG of width x height; False where it is another size, unusual, or gives a warning."""
    pointer, at = encoded.ctypes.data, found.ctypes.data
    size = np.uint64(len(encoded))
    if _header(handle, pointer, size, at, at + 4, at + 8, at + 12) != 0:
        return False
    if found[0] != width or found[1] != height or found[3] > YCBCR_OR_GRAY:
        return False
    return _decompress(handle, pointer, size, pixels.ctypes.data, width, 0, height, RGB_PIXELS, EXACT) == 0


@njit(nogil=True)
def _cut(
    image_HWC: NDArray[np.uint8],
    window_VA4: NDArray[np.int64],
    flip_V: NDArray[np.bool_],
    groups: tuple[NDArray[np.uint8], ...],
    b: int,
) -> None:
    """All views of one image into the place ``b`` of each group."""
    first = 0
    for crops_BVSSC in groups:
        last = first + crops_BVSSC.shape[1]
        resample(image_HWC, window_VA4[first:last], flip_V[first:last], crops_BVSSC[b])
        first = last


@njit(nogil=True)
def cut_views(
    job_BJ: NDArray[np.int64],
    image_N: NDArray[np.void],  # FFCV's metadata of the field: mode, width, height, data_ptr
    file: NDArray[np.uint8],
    ptr_T: NDArray[np.uint64],  # the allocation table, sorted by pointer
    size_T: NDArray[np.uint64],
    done_B: NDArray[np.bool_],
    groups: tuple[NDArray[np.uint8], ...],  # crops_BVSSC of each group of views
) -> None:
    """Fill ``groups``; ``done_B`` is False for a sample that the host must look at."""
    views = 0
    for crops_BVSSC in groups:
        views += crops_BVSSC.shape[1]
    flips = 1 + views * WINDOW
    largest = 0
    for b in range(len(job_BJ)):
        if job_BJ[b, SAMPLE] == HOST:
            continue
        image = image_N[job_BJ[b, SAMPLE]]
        largest = max(largest, np.int64(image["width"]) * np.int64(image["height"]))
    scratch = np.empty(3 * min(largest, MAX_PIXELS), np.uint8)
    found = np.empty(4, np.int32)  # of a JPEG's header: width, height, subsampling, colour space
    handle = _init()
    for b in range(len(job_BJ)):
        done_B[b] = False
        if job_BJ[b, SAMPLE] == HOST:
            continue
        image = image_N[job_BJ[b, SAMPLE]]
        width, height = np.int64(image["width"]), np.int64(image["height"])
        place = np.searchsorted(ptr_T, image["data_ptr"])
        if handle == 0 or width * height > MAX_PIXELS or place == len(ptr_T) or ptr_T[place] != image["data_ptr"]:
            continue
        start, size, count = np.int64(ptr_T[place]), np.int64(size_T[place]), 3 * width * height
        if start + size > len(file):
            continue
        stored = file[start : start + size]
        window_VA4 = job_BJ[b, 1:flips].reshape((views, 2, 4))
        flip_V = job_BJ[b, flips:] != 0
        if image["mode"] == RAW:
            if size == count:
                _cut(stored.reshape((height, width, 3)), window_VA4, flip_V, groups, b)
                done_B[b] = True
        elif _decode(handle, stored, width, height, scratch, found):
            _cut(scratch[:count].reshape((height, width, 3)), window_VA4, flip_V, groups, b)
            done_B[b] = True
    if handle != 0:
        _destroy(handle)
