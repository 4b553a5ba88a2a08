"""Crop, antialiased bicubic resize and horizontal flip of one decoded image into all its views, uint8 in and out."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from fastvicreg.contracts import Support
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.resample.windows import windows_of

__all__ = ["resample_views", "resampler"]


def resample_views(
    image_HWC: np.ndarray,  # uint8, RGB
    box_V4: np.ndarray,  # float64: x, y, w, h in pixels of the image
    flip_V: np.ndarray,  # bool: mirror left and right, after resizing
    out_VSSC: np.ndarray,  # uint8, C-contiguous, written
    support: Support = "crop",
    impl: str = "auto",
) -> None:
    """Write the V views of one image; may be called from many threads at once ("numba" holds no GIL).

    ``support="crop"`` resizes each box, which must be integral, as if there were no image around it: torchvision's
    RandomResizedCrop and flip. ``support="image"`` reads around the box: the view is what the same window of the whole
    resized image would be, torchvision's Resize and CenterCrop; a box must lie on the resized image's pixel grid.

    "reference" defines the pixels: Pillow's, with Pillow 13's order of the two passes. "numba", which "auto" names,
    equals it bit for bit; "torch" is ``interpolate``: near, not equal. An image that is not C-contiguous is copied.

    ``ValueError`` where an array has the wrong shape, dtype or layout, or a box is empty, not integral under "crop",
    off the grid under "image", or beyond the image; ``UserError`` where ``impl`` is not known.
    """
    _check_array("image_HWC", image_HWC, 3)
    _check_array("out_VSSC", out_VSSC, 4)
    views, height, width = out_VSSC.shape[:3]
    if height != width or not height:
        raise ValueError(f"out_VSSC must hold square views, got shape {out_VSSC.shape}")
    if not out_VSSC.flags.c_contiguous or not out_VSSC.flags.writeable:
        raise ValueError("out_VSSC must be C-contiguous and writable: the views are written into it in place")
    flip_V = np.ascontiguousarray(flip_V)
    if flip_V.dtype != np.bool_ or flip_V.shape != (views,):
        raise ValueError(f"flip_V must be {views} bools, one a view, got {flip_V.dtype} of shape {flip_V.shape}")
    window_VA4 = windows_of(image_HWC.shape[1], image_HWC.shape[0], box_V4, views, height, support)
    _implementation(impl)(np.ascontiguousarray(image_HWC), window_VA4, flip_V, out_VSSC)


def resampler(impl: str = "auto") -> Callable[..., None]:
    """``resample_views`` with ``impl`` chosen, loaded and compiled now, not at the first image; errors as there."""
    _implementation(impl)
    return functools.partial(resample_views, impl=impl)


@functools.cache
def _implementation(impl: str) -> Callable[..., None]:
    return KERNELS["resample"].choose(impl, "cpu", torch.uint8).function()


def _check_array(name: str, array: np.ndarray, ndim: int) -> None:
    if array.dtype != np.uint8 or array.ndim != ndim or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            f"{name} must be uint8 with {ndim} axes, the last one RGB, got {array.dtype} of shape {array.shape}"
        )
