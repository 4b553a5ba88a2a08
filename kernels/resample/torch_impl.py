"""The same views by ``torch.nn.functional.interpolate`` on channels-last uint8: near the reference, not equal to it.

Its weights have 16 bits, its passes always go horizontally first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate


def resample(image_HWC: np.ndarray, window_VA4: np.ndarray, flip_V: np.ndarray, out_VSSC: np.ndarray) -> None:
    """See ``fastvicreg.kernels.resample.resample_views``; windows as in ``windows``, arguments already checked."""
    if not image_HWC.flags.writeable:
        image_HWC = image_HWC.copy()  # torch has no read-only tensors
    image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)
    side = out_VSSC.shape[1]
    for window_A4, flip, out_SSC in zip(window_VA4.tolist(), flip_V, out_VSSC, strict=True):
        (x, w, out_w, left), (y, h, out_h, top) = window_A4
        crop_1CHW = image_CHW[None, :, y : y + h, x : x + w]
        resized_1CHW = interpolate(crop_1CHW, size=(out_h, out_w), mode="bicubic", antialias=True)
        view_CSS = resized_1CHW[0, :, top : top + side, left : left + side]
        torch.from_numpy(out_SSC).copy_((view_CSS.flip(2) if flip else view_CSS).permute(1, 2, 0))
