"""Boxes in source pixels made into windows of a resize: the integers that every implementation works from.

A view is a window of S x S pixels out of a resize: along each axis (A: x, y), IN_SIZE source pixels from OFFSET are
resized to OUT_SIZE pixels, of which S are kept from OUT_FIRST on. In integers, so that the resize is exactly the one
meant: a box in float32, as Pillow takes it, moves some pixels by 1/255.
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from fastvicreg.contracts import Support

OFFSET, IN_SIZE, OUT_SIZE, OUT_FIRST = range(4)

GRID_TOLERANCE = 1e-3  # output pixels; far above float64's rounding, far below what could be seen


def windows_of(
    width: int, height: int, box_V4: np.ndarray, views: int, side: int, support: Support
) -> np.ndarray:  # window_VA4, int64
    """The boxes (x, y, w, h in source pixels), checked, as windows; ``ValueError`` as in ``resample_views``."""
    if support not in get_args(Support):
        raise ValueError(f"support must be one of {', '.join(get_args(Support))}, got {support!r}")
    box_V4 = np.asarray(box_V4, dtype=np.float64)
    if box_V4.shape != (views, 4):
        raise ValueError(f"box_V4 must have shape ({views}, 4), one box a view, got {box_V4.shape}")
    window = _crop_window if support == "crop" else _image_window
    windows = []
    for box in box_V4.tolist():
        x, y, w, h = box
        slack = 1e-6  # a box computed from a resize's ratio may pass the border by a rounding
        if not (w > 0 and h > 0 and x >= -slack and y >= -slack and x + w <= width + slack and y + h <= height + slack):
            raise ValueError(f"box (x, y, w, h) = {tuple(box)} is empty or beyond the image of {width} x {height}")
        windows.append((window(x, w, width, side), window(y, h, height, side)))
    return np.array(windows, dtype=np.int64).reshape(views, 2, 4)


def _crop_window(start: float, length: float, size: int, side: int) -> tuple[int, int, int, int]:
    if not (start.is_integer() and length.is_integer()):
        raise ValueError(
            f"a box from {start} over {length} pixels is not integral, as support='crop' needs; use support='image'"
        )
    return int(start), int(length), side, 0


def _image_window(start: float, length: float, size: int, side: int) -> tuple[int, int, int, int]:
    """The whole axis is resized to ``out_size``, of which ``side`` pixels are kept."""
    out_size = round(size * side / length)
    first = round(start * out_size / size)
    off_grid = max(abs(start * out_size / size - first), abs(length * out_size / size - side))
    if off_grid > GRID_TOLERANCE:
        raise ValueError(
            f"a box from {start} over {length} of {size} pixels is no window of {side} pixels in the whole image's "
            f"resize: the nearest resize, to {out_size}, misses it by {off_grid:.3g} pixels; with left, out_size and "
            f"side integral, start is left * size / out_size and length is side * size / out_size"
        )
    return 0, size, out_size, first
