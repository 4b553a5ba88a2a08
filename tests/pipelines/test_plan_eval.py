"""Evaluation boxes are torchvision's Resize and CenterCrop, written out here a second time."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from fastvicreg.contracts import photometric_identity
from fastvicreg.pipelines.plan import eval_plan


def torchvision_resized(w: int, h: int, resize: int) -> tuple[int, int]:
    """torchvision's Resize(int): the output (width, height)."""
    short, long = (w, h) if w <= h else (h, w)
    new_short, new_long = resize, int(resize * long / short)
    return (new_short, new_long) if w <= h else (new_long, new_short)


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (224, 224), (36, 32), (35, 32), (73, 64)])
def test_eval_boxes_are_resize_and_center_crop(resize: int, crop: int) -> None:
    rng = random.Random(0)
    shapes = [(rng.randint(1, 3000), rng.randint(1, 3000)) for _ in range(500)]
    shapes += [(1, 1), (1, 3000), (3000, 1), (500, 500), (256, 256), (crop, resize)]
    box, flip = eval_plan(len(shapes), resize=resize, crop=crop).boxes(
        0, torch.arange(len(shapes)), torch.tensor(shapes)
    )
    for (w, h), got in zip(shapes, box[:, 0].tolist(), strict=True):
        ow, oh = torchvision_resized(w, h, resize)
        left, top = int(round((ow - crop) / 2.0)), int(round((oh - crop) / 2.0))  # noqa: RUF046 - torchvision's line
        assert got == pytest.approx((left * w / ow, top * h / oh, crop * w / ow, crop * h / oh), rel=1e-12, abs=1e-12)
        assert got[0] + got[2] <= w * (1 + 1e-12)
        assert got[1] + got[3] <= h * (1 + 1e-12)
    assert not flip.any()


@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (64, 64), (37, 120)])
def test_resampling_an_eval_box_is_resizing_then_cropping(shape: tuple[int, int]) -> None:
    # Grey enough that no pass is clipped: Pillow orders its two passes by the sizes, and these differ here.
    pixels = np.random.default_rng(1).integers(80, 176, (shape[1], shape[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    box = eval_plan(1, resize=40, crop=32).boxes(0, torch.tensor([0]), torch.tensor([shape]))[0][0, 0].tolist()
    x, y, w, h = box
    got = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h)))
    ow, oh = torchvision_resized(*shape, 40)
    left, top = round((ow - 32) / 2.0), round((oh - 32) / 2.0)
    whole = image.resize((ow, oh), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
    assert np.abs(got.astype(int) - np.asarray(whole).astype(int)).max() <= 1


def test_eval_order_and_photometric_change_nothing() -> None:
    made = eval_plan(11)
    assert made.sizes(0) == (224,)
    assert torch.equal(made.order(5), torch.arange(11))
    assert torch.equal(made.photometric(5, torch.arange(11)), photometric_identity(11, 1))
