"""Crop boxes and flips have torchvision's distribution, written out here a second time."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastvicreg.pipelines.plan import TrainPlan, train_plan
from fastvicreg.pipelines.recipes import Recipe, ViewRecipe, named_recipe

N = 20_000
SHAPES = [(500, 375), (333, 500), (32, 32), (640, 200), (100, 420), (7, 5), (3000, 1), (1, 3000), (1, 1)]


def torchvision_crop(rng: random.Random, w: int, h: int, view: ViewRecipe) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params of torchvision 0.22, with Python's generator: (x, y, w, h)."""
    area = h * w
    log_ratio = (math.log(view.crop_ratio[0]), math.log(view.crop_ratio[1]))
    for _ in range(10):
        target_area = area * rng.uniform(*view.crop_scale)
        aspect_ratio = math.exp(rng.uniform(*log_ratio))
        cw = round(math.sqrt(target_area * aspect_ratio))
        ch = round(math.sqrt(target_area / aspect_ratio))
        if 0 < cw <= w and 0 < ch <= h:
            i = rng.randint(0, h - ch)
            j = rng.randint(0, w - cw)
            return j, i, cw, ch
    return central_crop(w, h, view)


def central_crop(w: int, h: int, view: ViewRecipe) -> tuple[int, int, int, int]:
    """What get_params falls back to."""
    in_ratio = w / h
    if in_ratio < min(view.crop_ratio):
        cw, ch = w, round(w / min(view.crop_ratio))
    elif in_ratio > max(view.crop_ratio):
        cw, ch = round(h * max(view.crop_ratio)), h
    else:
        cw, ch = w, h
    return (w - cw) // 2, (h - ch) // 2, cw, ch


def plan(recipe: Recipe, seed: int = 0) -> TrainPlan:
    return train_plan(N, seed=seed, recipe=recipe, image_size=224)


def draw(made: TrainPlan, shape: tuple[int, int], epoch: int = 0) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(box_NV4, flip_NV) of N images of one shape."""
    box, flip = made.boxes(epoch, torch.arange(N), torch.tensor(shape).expand(N, 2).contiguous())
    assert torch.equal(box, box.round())
    return box.numpy().astype(np.int64), flip.numpy()


def kolmogorov(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Two-sample Kolmogorov-Smirnov distance over its scale: above 1.95 with a probability of 0.1 % at most."""
    at = np.union1d(a, b)
    distance = np.abs(
        np.searchsorted(np.sort(a), at, "right") / len(a) - np.searchsorted(np.sort(b), at, "right") / len(b)
    ).max()
    return float(distance * math.sqrt(len(a) * len(b) / (len(a) + len(b))))


@pytest.mark.parametrize("name", ["official", "small"])
@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_have_torchvisions_distribution(shape: tuple[int, int], name: str) -> None:
    w, h = shape
    recipe = named_recipe(name)
    rng = random.Random(1)
    want = np.array([torchvision_crop(rng, w, h, recipe.views[0]) for _ in range(N)], np.float64)
    boxes, _ = draw(plan(recipe), shape)
    assert (boxes[..., :2] >= 0).all()
    assert (boxes[..., 2:] >= 1).all()
    assert (boxes[..., :2] + boxes[..., 2:] <= shape).all()
    for v in range(2):
        got = boxes[:, v].astype(np.float64)
        for statistic in (
            lambda box: box[:, 2] * box[:, 3],  # area
            lambda box: np.log(box[:, 2] / box[:, 3]),
            lambda box: box[:, 2],
            lambda box: box[:, 0],
            lambda box: box[:, 1],
            lambda box: (box[:, 0] + 0.5) / (w - box[:, 2] + 1),  # the place among those it could have had
            lambda box: (box[:, 1] + 0.5) / (h - box[:, 3] + 1),
            lambda box: box[:, 0] + w * box[:, 1],
        ):
            assert kolmogorov(statistic(got), statistic(want)) < 1.95


def test_scale_and_log_ratio_are_uniform_where_every_try_fits() -> None:
    view = ViewRecipe(crop_scale=(0.1, 0.5))
    boxes, _ = draw(plan(Recipe("inner", (view,))), (4000, 4000))
    exact = (np.arange(N) + 0.5) / N
    area = boxes[:, 0, 2] * boxes[:, 0, 3] / 4000**2
    log_ratio = np.log(boxes[:, 0, 2] / boxes[:, 0, 3])
    assert kolmogorov((area - 0.1) / 0.4, exact) < 1.95
    assert kolmogorov((log_ratio / math.log(4 / 3) + 1) / 2, exact) < 1.95
    assert abs(np.corrcoef(area, log_ratio)[0, 1]) * math.sqrt(N) < 4


def test_every_place_of_a_crop_is_equally_likely() -> None:
    view = ViewRecipe(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    boxes, _ = draw(plan(Recipe("quarter", (view,))), (8, 8))
    assert (boxes[..., 2:] == 4).all()
    counts = np.bincount(boxes[:, 0, 0] + 5 * boxes[:, 0, 1], minlength=25)
    assert ((counts - N / 25) ** 2 / (N / 25)).sum() < 24 + 5 * math.sqrt(48)


@pytest.mark.parametrize("shape", [(3000, 1), (1, 3000), (3000, 7), (2, 900)])
def test_extreme_shapes_fall_back_to_the_central_crop(shape: tuple[int, int]) -> None:
    view = ViewRecipe(crop_scale=(0.5, 1.0))
    boxes, _ = draw(plan(Recipe("large", (view,))), shape)
    assert (boxes[:, 0] == central_crop(*shape, view)).all()


@pytest.mark.parametrize(("shape", "share"), [((300, 100), 0.08), ((500, 375), 0.5)])
def test_ten_tries_are_made(shape: tuple[int, int], share: float) -> None:
    """A wide image refuses a try with a probability p: the central crop comes up with p^10, not p or p^9."""
    w, h = shape
    view = ViewRecipe(crop_scale=(share, 1.0))
    scale = np.random.default_rng(0).uniform(share, 1.0, 400_000) * w * h
    ratio = np.exp(np.random.default_rng(1).uniform(math.log(3 / 4), math.log(4 / 3), 400_000))
    refused = ((np.rint(np.sqrt(scale * ratio)) > w) | (np.rint(np.sqrt(scale / ratio)) > h)).mean()
    boxes, _ = draw(plan(Recipe("wide", (view,))), shape)
    fallback = (boxes[:, 0] == central_crop(w, h, view)).all(1).mean()
    expected = refused**10
    assert abs(fallback - expected) < 5 * math.sqrt(max(expected, 1 / N) / N) + 1e-3


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_flips_have_their_probability_in_each_view(p: float) -> None:
    view = ViewRecipe(flip_p=p)
    _, flip = draw(plan(Recipe("flips", (view, view))), (32, 32))
    for share in flip.mean(0):
        assert abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / N)


def test_boxes_are_independent_of_view_sample_epoch_seed_and_flip() -> None:
    boxes, flip = draw(plan(named_recipe("small")), (500, 400))
    later, _ = draw(plan(named_recipe("small")), (500, 400), epoch=1)
    other, _ = draw(plan(named_recipe("small"), seed=1), (500, 400))
    first = boxes[:, 0]
    for column in range(4):
        for companion in (boxes[:, 1], later[:, 0], other[:, 0], np.roll(first, 1, 0), flip[:, :1].repeat(4, 1)):
            r = np.corrcoef(first[:, column], companion[:, column])[0, 1]
            assert abs(r) * math.sqrt(N) < 4.5
    assert abs(np.corrcoef(flip[:, 0], flip[:, 1])[0, 1]) * math.sqrt(N) < 4.5


def test_probabilities_do_not_move_the_boxes() -> None:
    view = ViewRecipe()
    changed = replace(view, flip_p=0.1, jitter_p=0.1, blur_p=0.0)
    boxes, flips = draw(plan(Recipe("a", (view,))), (500, 400))
    same_boxes, fewer_flips = draw(plan(Recipe("b", (changed,))), (500, 400))
    assert (boxes == same_boxes).all()
    assert (flips | ~fewer_flips).all()
