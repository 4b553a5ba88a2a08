"""The peer that the augment benchmark runs on a GPU does the same operations as Pillow, in floating point."""

from __future__ import annotations

import pytest
import torch

from fastvicreg.contracts import Photometric, photometric_identity
from fastvicreg.profiles.bench.augment import photo_like, pillow_view
from fastvicreg.profiles.bench.peers_augment import batched_torch

CASES: list[dict[str, float]] = [
    {},
    *({"ORDER": 0, name: factor} for name in ("BRIGHTNESS", "CONTRAST", "SATURATION") for factor in (0.6, 1.4)),
    *({"ORDER": 0, "HUE": turns} for turns in (-0.1, 0.1)),
    *({"BLUR_SIGMA": sigma} for sigma in (0.5, 2.0)),
    *({"GRAYSCALE": 1}, {"SOLARIZE": 128}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_operation_is_near_pillows(dtype: torch.dtype) -> None:
    crops, params = photo_like(len(CASES), 48, 0), photometric_identity(len(CASES), 2)
    for row, case in zip(params, CASES, strict=True):
        for name, value in case.items():
            row[:, Photometric[name]] = value
    views = batched_torch(crops, params, mean=(0, 0, 0), std=(1 / 255,) * 3, dtype=dtype)
    for v, view in enumerate(views):
        assert view.dtype == dtype
        assert view.is_contiguous(memory_format=torch.channels_last)
        for levels, crop, row, case in zip(view.permute(0, 2, 3, 1), crops[:, v], params[:, v], CASES, strict=True):
            error = (levels.float() - torch.from_numpy(pillow_view(crop.numpy(), row))).abs().mean()
            # Pillow drops fractions, and rounds hue to a byte; bfloat16 has 8 bits.
            assert error < (2.0 if dtype == torch.float32 else 2.5), (case, error)
