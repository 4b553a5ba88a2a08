"""One view of a plain image, to see whether a resample implementation works on this machine."""

from __future__ import annotations

import numpy as np

from fastvicreg.errors import UserError
from fastvicreg.kernels.resample import resample_views


def trial(impl: str, device: str) -> str:
    """What came of it; raises what the implementation raises, and ``UserError`` for a GPU: images are on the host."""
    if device != "cpu":
        raise UserError(f"the resample kernel {impl!r} takes images on the CPU, not on {device}.")
    image_HWC, out_VSSC = np.full((9, 7, 3), 100, np.uint8), np.zeros((1, 4, 4, 3), np.uint8)
    resample_views(image_HWC, np.array([[1.0, 2.0, 5.0, 6.0]]), np.array([True]), out_VSSC, impl=impl)
    return f"one view {out_VSSC.shape[1:]}, mean {out_VSSC.mean():.0f} of 100"
