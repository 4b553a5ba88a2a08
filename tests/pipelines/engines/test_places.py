"""Where each view was cut: told by every engine, where it is asked for, as the pixels themselves say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from near_native import needs_dali
from PIL import Image
from stored import damage, epoch_of, multicrop, unchecked, write_images

from fastvicreg.contracts import Batch, Crops, Cursor
from fastvicreg.kernels.augment import augment
from fastvicreg.methods.vicregl.matching import centres
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.feed import AugmentedFeed

needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed: make ffcv")


def coordinates(root: Path) -> Path:
    """Images whose red is x and whose green is y, 200 by 160 pixels."""
    (root / "a").mkdir(parents=True)
    y_HW, x_HW = np.mgrid[:160, :200].astype(np.uint8)
    for number in range(6):
        Image.fromarray(np.stack((x_HW, y_HW, 0 * x_HW), -1)).save(root / "a" / f"{number}.png")
    return root


def batches(name: str, source: Any, **options: Any) -> list[Crops]:
    plan = multicrop(len(source))
    return epoch_of(build_engine(name, source, plan, batch_size=4, workers=2, **options), Cursor(3, 0))


def test_a_position_s_pixels_are_of_where_it_is_said_to_lie(tmp_path: Path) -> None:
    flipped = set()
    for crops in batches("native", open_source(coordinates(tmp_path / "data")), places=True):
        assert crops.places_BV5 is not None
        for view, place_B5 in zip(crops.views, crops.places_BV5.unbind(1), strict=True):
            flipped |= set(place_B5[:, 4].tolist())
            seen_B2SS = torch.nn.functional.adaptive_avg_pool2d(view.permute(0, 3, 1, 2)[:, :2].float(), 4)
            # The first pixel's own centre lies at half a pixel.
            torch.testing.assert_close(seen_B2SS.flatten(2).mT + 0.5, centres(place_B5, 4), rtol=0, atol=1.0)
    assert flipped == {0.0, 1.0}


def test_nothing_is_told_where_nobody_asks(tmp_path: Path) -> None:
    source = open_source(coordinates(tmp_path / "data"))
    for name in ("native", "synthetic"):
        assert all(crops.places_BV5 is None for crops in batches(name, source))


def test_places_are_the_plan_s_of_the_image_that_was_delivered(tmp_path: Path) -> None:
    """A damaged sample's views are cut from its neighbour, by boxes drawn for the neighbour's size."""
    root = write_images(tmp_path / "data")
    (root / "a" / "03.jpg").write_bytes(b"no image")
    source = open_source(root)
    replaced = 0
    for crops in batches("native", source, places=True):
        wh_B2 = torch.tensor([source.size(int(index)) for index in crops.index_B])
        box_BV4, flip_BV = multicrop(len(source)).boxes(3, crops.slot_B, wh_B2)
        assert crops.places_BV5 is not None
        assert torch.equal(crops.places_BV5[..., :4], box_BV4.float())
        assert torch.equal(crops.places_BV5[..., 4], flip_BV.float())
        replaced += int((crops.fault_B > 0).sum())
    assert replaced == 1


@pytest.mark.parametrize(
    "name", [pytest.param("ffcv", marks=[needs_ffcv, pytest.mark.slow]), pytest.param("dali", marks=needs_dali)]
)
def test_every_engine_tells_what_native_tells(name: str, tmp_path: Path) -> None:
    convert_dataset(write_images(tmp_path / "data"), tmp_path / "data.beton")
    damage(unchecked(tmp_path / "data.beton"), 5, 0.0, b"\0" * 400)
    source = open_source(tmp_path / "data.beton")
    found, expected = (batches(engine, source, places=True) for engine in (name, "native"))
    assert any(int(crops.fault_B.max()) for crops in expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.places_BV5 is not None
        assert theirs.places_BV5 is not None
        assert torch.equal(mine.places_BV5, theirs.places_BV5)
        assert torch.equal(mine.index_B, theirs.index_B)


@pytest.mark.parametrize("name", ["native", "synthetic"])
def test_a_batch_s_inputs_end_with_its_places(name: str, tmp_path: Path) -> None:
    source = open_source(coordinates(tmp_path / "data"))
    plan = multicrop(len(source))
    for places in (True, False):
        engine = build_engine(name, source, plan, batch_size=4, workers=2, places=places)
        batch: Batch = next(AugmentedFeed(engine, plan, kernel=augment).epoch(Cursor(0, 0))).batch
        engine.close()
        assert len(batch.views) == 8
        assert len(batch.inputs) == 8 + places
        if places:
            assert batch.inputs[-1].shape == (4, 8, 5)
