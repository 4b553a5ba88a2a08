"""The definition of a resampled view: Pillow's antialiased bicubic resize of the box, then the flip."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resample(image_HWC: np.ndarray, window_VA4: np.ndarray, flip_V: np.ndarray, out_VSSC: np.ndarray) -> None:
    """See ``fastvicreg.kernels.resample.resample_views``; windows as in ``windows``, arguments already checked."""
    side = out_VSSC.shape[1]
    for window_A4, flip, out_SSC in zip(window_VA4.tolist(), flip_V, out_VSSC, strict=True):
        (x, w, out_w, left), (y, h, out_h, top) = window_A4
        crop = Image.fromarray(np.ascontiguousarray(image_HWC[y : y + h, x : x + w]))
        view_SSC = np.asarray(_resize(crop, out_w, out_h).crop((left, top, left + side, top + side)))
        out_SSC[:] = view_SSC[:, ::-1] if flip else view_SSC


def _resize(image: Image.Image, out_w: int, out_h: int) -> Image.Image:
    """Pillow 13's ``resize``, pass by pass: older releases always go horizontally first and round differently."""
    w, h = image.size
    vertical_first = h > out_h and h - out_h > 2 * (w - out_w)
    between = (w, out_h) if vertical_first else (out_w, h)
    return image.resize(between, Image.Resampling.BICUBIC).resize((out_w, out_h), Image.Resampling.BICUBIC)
