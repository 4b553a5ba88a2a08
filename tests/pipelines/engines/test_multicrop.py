"""Views of several sizes, and sizes that change by epoch: the same crops from every engine, of one decode an image."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from near_native import assert_near, needs_dali
from reference_engine import reference_views
from stored import damage, multicrop, training, unchecked

from fastvicreg.contracts import Crops, Cursor, Engine, Plan, Source
from fastvicreg.errors import UserError
from fastvicreg.kernels.augment import augment
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.engines import host
from fastvicreg.pipelines.engines.workload import ViewGroup, groups_of
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import Recipe, named_recipe

needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed: make ffcv")
GROWING = (24, 40)
"""Sides of the large views: as large as the small ones at first, so that all are one group, then larger."""

KINDS = ["two sizes", "two sizes, the large ones growing", "one size, growing", "four views"]


def epochs_of(engine: Engine, epochs: int) -> list[Crops]:
    """The batches of the first epochs from one engine, which is closed."""
    try:
        return [crops for epoch in range(epochs) for crops in engine.batches(Cursor(epoch, 0))]
    finally:
        engine.close()


def plans(samples: int) -> dict[str, Plan]:
    recipe = named_recipe("official")
    return {
        "two sizes": multicrop(samples),
        "two sizes, the large ones growing": multicrop(samples, GROWING, 2),
        "one size, growing": train_plan(samples, seed=3, recipe=recipe, image_size=(32, 48), epochs=2),
        "four views": train_plan(samples, seed=3, recipe=named_recipe("official", num_views=4), image_size=32),
    }


def test_views_of_one_size_that_follow_one_another_are_a_group() -> None:
    assert groups_of((224, 224, 96, 96, 96)) == (ViewGroup(slice(0, 2), 224), ViewGroup(slice(2, 5), 96))
    assert [group.count for group in groups_of((96, 224, 96))] == [1, 1, 1]


def test_a_view_keeps_its_box_and_parameters_whatever_views_come_after_it() -> None:
    eight = named_recipe("multicrop")
    two = Recipe("large alone", eight.views[:2])
    index_B, wh_B2 = torch.arange(50), torch.randint(1, 600, (50, 2))
    made = [train_plan(50, seed=5, recipe=recipe, image_size=224) for recipe in (eight, two)]
    (box_BV4, flip_BV), (fewer_BV4, fewer_BV) = (plan.boxes(4, index_B, wh_B2) for plan in made)
    assert torch.equal(box_BV4[:, :2], fewer_BV4)
    assert torch.equal(flip_BV[:, :2], fewer_BV)
    params, fewer = (plan.photometric(4, index_B) for plan in made)
    assert torch.equal(params[:, :2], fewer)
    assert made[0].sizes(0) == (224, 224, 96, 96, 96, 96, 96, 96)


@pytest.mark.parametrize("name", ["official", "small"])
def test_more_views_are_the_recipe_s_in_turn_and_leave_the_first_as_they_are(name: str) -> None:
    two, five = named_recipe(name), named_recipe(name, num_views=5)
    assert five.views == (*two.views, *two.views, two.views[0])
    assert named_recipe(name, num_views=2) == two
    index_B, wh_B2 = torch.arange(50), torch.randint(1, 600, (50, 2))
    made = [train_plan(50, seed=5, recipe=recipe, image_size=32) for recipe in (five, two)]
    assert torch.equal(made[0].order(4), made[1].order(4))
    (box_BV4, flip_BV), (fewer_BV4, fewer_BV) = (plan.boxes(4, index_B, wh_B2) for plan in made)
    assert torch.equal(box_BV4[:, :2], fewer_BV4)
    assert torch.equal(flip_BV[:, :2], fewer_BV)
    assert not torch.equal(box_BV4[:, 2], fewer_BV4[:, 0])  # the same recipe, other draws
    params, fewer = (plan.photometric(4, index_B) for plan in made)
    assert torch.equal(params[:, :2], fewer)


@pytest.mark.parametrize(
    ("name", "count", "line"),
    [
        ("official", 1, "--num-views 1: give 2 to 64, or 0 for the recipe's own."),
        ("official", 65, "--num-views 65: give 2 to 64"),
        ("multicrop", 4, "--num-views 4: the recipe multicrop has large and small views, 8 in all"),
    ],
)
def test_a_number_of_views_that_cannot_be_is_refused(name: str, count: int, line: str) -> None:
    with pytest.raises(UserError, match=line):
        named_recipe(name, num_views=count)


def test_small_views_show_the_share_that_they_are_to() -> None:
    plan = train_plan(4000, seed=1, recipe=named_recipe("multicrop"), image_size=224)
    box_BV4, _ = plan.boxes(0, torch.arange(4000), torch.tensor([400, 300]).repeat(4000, 1))
    share_BV = box_BV4[..., 2] * box_BV4[..., 3] / (400 * 300)
    for views, low, high in ((slice(0, 2), 0.14, 1.0), (slice(2, 8), 0.05, 0.14)):
        assert share_BV[:, views].min() == pytest.approx(low, abs=0.002)
        assert low - 0.002 < share_BV[:, views].max() < high + 0.002
        assert share_BV[:, views].quantile(0.99) > 0.9 * high


def test_sizes_each_last_an_equal_share_of_the_epochs() -> None:
    plan = train_plan(10, seed=0, recipe=named_recipe("official"), image_size=(128, 192, 224), epochs=10)
    assert [plan.sizes(epoch)[0] for epoch in range(12)] == [128] * 4 + [192] * 3 + [224] * 5
    for sizes, epochs in (((32, 64, 96), 2), ((), 1), ((32, 0), 2)):
        with pytest.raises(UserError, match="image_size = "):
            train_plan(10, seed=0, recipe=named_recipe("official"), image_size=sizes, epochs=epochs)


@pytest.mark.parametrize("kind", KINDS)
def test_native_equals_pil(folder: Path, kind: str) -> None:
    source = open_source(folder)
    plan = plans(len(source))[kind]
    for crops in epochs_of(build_engine("native", source, plan, batch_size=5, workers=2), 2):
        wanted = reference_views(source, plan, crops.cursor.epoch, crops.slot_B)
        assert [view.shape[1] for view in crops.views] == list(plan.sizes(crops.cursor.epoch))
        for view, expected in zip(crops.views, wanted, strict=True):
            np.testing.assert_array_equal(view.numpy(), expected)


@pytest.mark.slow
@needs_ffcv
@pytest.mark.parametrize("kind", KINDS)
def test_ffcv_equals_native(beton: Path, kind: str) -> None:
    damage(beton, 6, 0.5, bytes(64))
    source = open_source(unchecked(beton))
    native, ffcv = (both(name, source, plans(len(source))[kind]) for name in ("native", "ffcv"))
    for a, b in zip(native, ffcv, strict=True):
        assert torch.equal(a.index_B, b.index_B)
        for x, y in zip(a.groups, b.groups, strict=True):
            assert torch.equal(x, y), a.cursor
    assert sum(int((crops.fault_B > 0).sum()) for crops in ffcv) == 2


@needs_dali
@pytest.mark.parametrize("kind", KINDS)
def test_dali_is_near_native(beton: Path, kind: str) -> None:
    damage(beton, 6, 0.5, bytes(64))
    source = open_source(beton)
    native, dali = (both(name, source, plans(len(source))[kind]) for name in ("native", "dali"))
    assert_near(dali, native)
    assert sum(int((crops.fault_B > 0).sum()) for crops in dali) == 2


def both(name: str, source: Source, plan: Plan) -> list[Crops]:
    """Two epochs in one batch of all samples each, so that no sample is dropped."""
    return epochs_of(build_engine(name, source, plan, batch_size=len(source), workers=2), 2)


def test_synthetic_has_the_plans_sizes(folder: Path) -> None:
    source = open_source(folder)
    plan = multicrop(len(source), GROWING, 2)
    for crops in both("synthetic", source, plan):
        assert [view.shape[1] for view in crops.views] == list(plan.sizes(crops.cursor.epoch))


def test_native_decodes_an_image_once_for_all_its_views(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = host.decode_sample
    monkeypatch.setattr(host, "decode_sample", lambda source, i: decoded.append(i) or original(source, i))
    source = open_source(folder)
    epochs_of(build_engine("native", source, multicrop(len(source)), batch_size=len(source)), 1)
    assert sorted(decoded) == list(range(len(source)))


COUNTED = """
import ctypes, sys
from llvmlite import binding
from fastvicreg.contracts import Cursor
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
import fastvicreg.pipelines.engines.ffcv as engine_module
source = open_source(sys.argv[1])
plan = train_plan(len(source), seed=3, recipe=named_recipe("multicrop", small_size=24), image_size=40)
engine = build_engine("ffcv", source, plan, batch_size=len(source), workers=2)
from ffcv.libffcv import lib
signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p,
                             *[ctypes.c_int] * 5)
original = signature(("tjDecompress2", lib))
calls = []
counting = signature(lambda *arguments: calls.append(1) or original(*arguments))
binding.add_symbol("tjDecompress2", ctypes.cast(counting, ctypes.c_void_p).value)
(crops,) = engine.batches(Cursor(0, 0))
assert not crops.fault_B.any()
print(len(calls), len(source))
engine.close()
"""


@pytest.mark.slow
@needs_ffcv
def test_ffcv_decodes_an_image_once_for_all_its_views(beton: Path) -> None:
    done = subprocess.run([sys.executable, "-c", COUNTED, str(beton)], timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls, samples = map(int, done.stdout.split())
    assert calls == samples


@needs_dali
def test_dalis_graph_has_one_decoder_for_all_views(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia.dali import fn  # pyright: ignore[reportMissingImports]

    decoders: list[Any] = []
    original = fn.decoders.image_slice
    monkeypatch.setattr(fn.decoders, "image_slice", lambda *a, **k: decoders.append(1) or original(*a, **k))
    source = open_source(beton)
    (crops,) = epochs_of(build_engine("dali", source, multicrop(len(source)), batch_size=len(source)), 1)
    assert len(crops.views) == 8
    assert len(decoders) == 1


def test_the_feed_augments_every_view_by_its_own_parameters(folder: Path) -> None:
    source = open_source(folder)
    plan = multicrop(len(source))
    (crops,) = epochs_of(build_engine("native", source, plan, batch_size=len(source)), 1)
    engine = build_engine("native", source, plan, batch_size=len(source))
    (fed,) = AugmentedFeed(engine, plan).epoch(Cursor(0, 0))
    engine.close()
    params_BVP = plan.photometric(0, crops.slot_B)
    assert [view.shape[-1] for view in fed.batch.views] == [40, 40, 24, 24, 24, 24, 24, 24]
    for v, (view, crop) in enumerate(zip(fed.batch.views, crops.views, strict=True)):
        (wanted,) = augment(crop[:, None], params_BVP[:, v : v + 1])
        assert torch.equal(view, wanted)
        assert view.is_contiguous(memory_format=torch.channels_last)


def test_a_small_size_without_small_views_is_refused() -> None:
    with pytest.raises(UserError, match="--small-size 64: the recipe official has no small views"):
        named_recipe("official", small_size=64)
    assert [view.size for view in named_recipe("multicrop", small_size=64).views] == [0, 0, *[64] * 6]
    assert training(5).sizes(0) == (32, 32)
