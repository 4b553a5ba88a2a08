"""Views of two black samples, to see whether an augment implementation works on this machine."""

from __future__ import annotations

import torch

from fastvicreg.contracts import photometric_identity
from fastvicreg.kernels.augment import augment


def trial(impl: str, device: str) -> str:
    """What came of it; raises what the implementation raises."""
    crops_BVHWC = torch.zeros(2, 2, 8, 8, 3, dtype=torch.uint8, device=device)
    views = augment(crops_BVHWC, photometric_identity(2, 2), impl=impl)
    return f"{len(views)} views {tuple(views[0].shape)}, first value {float(views[0][0, 0, 0, 0]):.2f}"
