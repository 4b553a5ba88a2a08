"""Photometric parameters have the official recipe's distribution, one independent stream for each choice."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastvicreg.contracts import Photometric, photometric_identity
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import Recipe, ViewRecipe, named_recipe

N = 40_000
FACTORS = (Photometric.BRIGHTNESS, Photometric.CONTRAST, Photometric.SATURATION, Photometric.HUE)


def draw(recipe: Recipe, seed: int = 0, epoch: int = 0) -> NDArray[np.float32]:
    """params_NVP of N samples."""
    made = train_plan(N, seed=seed, recipe=recipe, image_size=224)
    return made.photometric(epoch, torch.arange(N)).numpy()


def one(**changes: float) -> NDArray[np.float32]:
    """params_NP of a single view of the paper's recipe, changed."""
    return draw(Recipe("one", (replace(ViewRecipe(), **changes),)))[:, 0]  # type: ignore[arg-type]


def from_uniform(values: NDArray[np.float32], low: float, high: float) -> float:
    """Kolmogorov-Smirnov distance from U(low, high) over its scale: above 1.95 with a probability of 0.1 %."""
    u = (np.sort(values.astype(np.float64)) - low) / (high - low)
    ranks = np.arange(len(u) + 1) / len(u)
    return float(max((ranks[1:] - u).max(), (u - ranks[:-1]).max()) * math.sqrt(len(u)))


def is_binomial(hits: NDArray[np.bool_], p: float) -> bool:
    return abs(hits.mean() - p) <= 4.5 * math.sqrt(p * (1 - p) / len(hits))


@pytest.mark.parametrize("name", ["official", "paper", "small"])
def test_every_operation_has_its_probability(name: str) -> None:
    recipe = named_recipe(name)
    params = draw(recipe)
    for v, view in enumerate(recipe.views):
        p = params[:, v]
        assert is_binomial(p[:, Photometric.ORDER] >= 0, view.jitter_p)
        assert is_binomial(p[:, Photometric.GRAYSCALE] == 1, view.grayscale_p)
        assert is_binomial(p[:, Photometric.BLUR_SIGMA] > 0, view.blur_p)
        assert is_binomial(p[:, Photometric.SOLARIZE] == 128, view.solarize_p)
        assert np.isin(p[:, Photometric.GRAYSCALE], (0, 1)).all()
        assert np.isin(p[:, Photometric.SOLARIZE], (128, 256)).all()


def test_factors_are_uniform_in_color_jitters_ranges() -> None:
    params = one()
    params = params[params[:, Photometric.ORDER] >= 0]
    for column, low, high in zip(FACTORS, (0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1), strict=True):
        values = params[:, column]
        assert np.float32(low) <= values.min()
        assert values.max() <= np.float32(high)
        assert from_uniform(values, low, high) < 1.95
    correlations = np.corrcoef(params[:, [*FACTORS, Photometric.ORDER]].T) - np.eye(5)
    assert np.abs(correlations).max() * math.sqrt(len(params)) < 4.5


def test_strong_factors_stop_at_zero() -> None:
    values = one(brightness=3.0, jitter_p=1.0)[:, Photometric.BRIGHTNESS]
    assert values.min() >= 0
    assert from_uniform(values, 0.0, 4.0) < 1.95


def test_the_24_orders_are_equally_likely() -> None:
    orders = one(jitter_p=1.0)[:, Photometric.ORDER]
    counts = np.bincount(orders.astype(np.int64), minlength=24)
    assert len(counts) == 24
    assert (orders == orders.round()).all()
    assert ((counts - N / 24) ** 2 / (N / 24)).sum() < 23 + 5 * math.sqrt(46)


def test_sigma_is_uniform_where_a_view_is_blurred() -> None:
    sigma = one(blur_p=0.7)[:, Photometric.BLUR_SIGMA]
    assert from_uniform(sigma[sigma > 0], 0.1, 2.0) < 1.95


def test_what_is_not_applied_is_the_identity() -> None:
    params = one(jitter_p=0.5)
    left = params[params[:, Photometric.ORDER] < 0]
    identity = photometric_identity().numpy()
    assert (left[:, :5] == identity[:5]).all()
    nothing = one(jitter_p=0.0, grayscale_p=0.0, blur_p=0.0, solarize_p=0.0)
    assert (nothing == identity).all()
    always = one(jitter_p=1.0, grayscale_p=1.0, blur_p=1.0, solarize_p=1.0, solarize_threshold=100)
    assert (always[:, Photometric.ORDER] >= 0).all()
    assert (always[:, Photometric.GRAYSCALE] == 1).all()
    assert (always[:, Photometric.BLUR_SIGMA] >= np.float32(0.1)).all()
    assert (always[:, Photometric.SOLARIZE] == 100).all()


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({"jitter_p": 0.3}, (0, 1, 2, 3, 4)),
        ({"brightness": 0.1}, (0,)),
        ({"contrast": 0.1}, (1,)),
        ({"saturation": 0.1}, (2,)),
        ({"hue": 0.4}, (3,)),
        ({"grayscale_p": 0.9}, (5,)),
        ({"blur_p": 0.1}, (6,)),
        ({"blur_sigma": (1.0, 3.0)}, (6,)),
        ({"solarize_p": 0.9}, (7,)),
        ({"flip_p": 0.1, "crop_scale": (0.5, 1.0)}, ()),
    ],
)
def test_a_change_moves_its_own_columns_only(changes: dict[str, float], columns: tuple[int, ...]) -> None:
    before, after = one(), one(**changes)
    moved = tuple(np.flatnonzero((before != after).any(0)))
    assert moved == columns


def test_a_rarer_operation_keeps_its_strength_where_it_still_comes() -> None:
    often, rarely = one(jitter_p=0.8, blur_p=0.5), one(jitter_p=0.2, blur_p=0.1)
    kept = rarely[:, Photometric.ORDER] >= 0
    assert (often[kept, :5] == rarely[kept, :5]).all()
    blurred = rarely[:, Photometric.BLUR_SIGMA] > 0
    assert (often[blurred, Photometric.BLUR_SIGMA] == rarely[blurred, Photometric.BLUR_SIGMA]).all()


def test_choices_of_a_view_are_uncorrelated() -> None:
    params = draw(named_recipe("paper"))[:, 0]
    r = np.corrcoef(params.T) - np.eye(8)
    assert np.abs(r).max() * math.sqrt(N) < 4.5


def test_choices_are_independent_of_view_sample_epoch_and_seed() -> None:
    recipe = named_recipe("paper")
    params = draw(recipe)
    first = params[:, 0]
    for other in (params[:, 1], draw(recipe, epoch=1)[:, 0], draw(recipe, seed=1)[:, 0], np.roll(first, 1, 0)):
        for of in (lambda p: p, lambda p: np.abs(p - p.mean(0))):  # the values, then how far they are from the middle
            r = np.corrcoef(of(first).T, of(other).T)[:8, 8:]
            assert np.abs(r).max() * math.sqrt(N) < 4.5
