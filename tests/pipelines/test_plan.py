"""The plan as a whole: exact permutations, purity, golden values, recipes, refusals."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvicreg.contracts import Plan, UserError
from fastvicreg.pipelines.plan import TrainPlan, eval_plan, train_plan
from fastvicreg.pipelines.recipes import Recipe, ViewRecipe, named_recipe

SAMPLES = 5000


def plan(seed: int = 0, recipe: str = "official", **options: object) -> TrainPlan:
    return train_plan(SAMPLES, seed=seed, recipe=named_recipe(recipe), image_size=224, **options)  # type: ignore[arg-type]


def sizes(count: int) -> Tensor:
    """wh_B2 of photographs of many shapes."""
    return torch.from_numpy(np.random.default_rng(0).integers(1, 2000, (count, 2)))


def test_both_plans_keep_the_contract() -> None:
    train: Plan = plan()
    evaluation: Plan = eval_plan(10, resize=36, crop=32)
    assert isinstance(train, Plan)
    assert isinstance(evaluation, Plan)
    assert (train.views, train.drop_last, train.support, train.sizes(3)) == (2, True, "crop", (224, 224))
    assert (evaluation.views, evaluation.drop_last, evaluation.support) == (1, False, "image")
    assert evaluation.sizes(3) == (32,)
    index, wh = torch.arange(7), sizes(7)
    for made, views in ((train, 2), (evaluation, 1)):
        box, flip = made.boxes(0, index, wh)
        params = made.photometric(0, index)
        assert (box.shape, box.dtype, flip.shape, flip.dtype) == ((7, views, 4), torch.float64, (7, views), torch.bool)
        assert (params.shape, params.dtype) == ((7, views, 8), torch.float32)
        assert made.order(0).dtype == torch.int64


# --- order


@pytest.mark.parametrize("samples", [1, 2, 3, 1000, 1025, SAMPLES])
@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_order_is_a_permutation(samples: int, shuffle: str) -> None:
    made = train_plan(samples, seed=1, recipe=named_recipe("paper"), image_size=32, shuffle=shuffle, block=64, group=3)  # type: ignore[arg-type]
    assert torch.equal(made.order(4).sort().values, torch.arange(samples))


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_orders_differ_by_epoch_and_seed_without_correlation(shuffle: str) -> None:
    orders = [plan(s, shuffle=shuffle, block=8, group=4).order(e).numpy() for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for i, first in enumerate(orders):
        # A lag-0 match has probability 1 / N at each place: Poisson with mean 1.
        assert (first == np.arange(SAMPLES)).sum() < 10
        for second in orders[:i]:
            assert (first == second).sum() < 10
            assert abs(np.corrcoef(first, second)[0, 1]) * np.sqrt(SAMPLES / 8) < 4


def test_full_shuffle_reaches_every_order_equally() -> None:
    counts = np.zeros(24)
    made = train_plan(4, seed=9, recipe=named_recipe("paper"), image_size=32)
    for epoch in range(4800):
        a, b, c, d = made.order(epoch).tolist()
        counts[6 * a + 2 * (b - (b > a)) + (c > d)] += 1
    chi2 = ((counts - 200) ** 2 / 200).sum()
    assert chi2 < 23 + 5 * np.sqrt(46)


def test_blocks_stay_local_and_are_mixed_within_their_group() -> None:
    block, group = 50, 8
    order = plan(shuffle="blocks", block=block, group=group).order(2).numpy()
    place = np.empty(SAMPLES, np.int64)
    place[order] = np.arange(SAMPLES)
    spans = np.ptp(place.reshape(-1, block), axis=1)
    assert spans.max() < block * group
    assert np.median(spans) > block * group * 0.8
    windows = (order // block).reshape(-1, block * group // 4)
    assert all(len(np.unique(window)) == group for window in windows[:48])


def test_blocks_of_one_group_equal_a_full_mixture() -> None:
    order = plan(shuffle="blocks", block=100, group=50).order(0).numpy()
    assert abs(np.corrcoef(order, np.arange(SAMPLES))[0, 1]) * np.sqrt(SAMPLES) < 4
    assert np.ptp(order[:100]) > SAMPLES * 0.9


def test_a_short_last_block_is_placed_like_the_others() -> None:
    made = train_plan(10, seed=0, recipe=named_recipe("paper"), image_size=32, shuffle="blocks", block=4, group=1)
    firsts = [made.order(epoch)[:2].tolist() for epoch in range(300)]
    share = sum(set(first) == {8, 9} for first in firsts) / 300
    assert 0.23 < share < 0.44


# --- purity


def everything(made: TrainPlan, epoch: int, index: Tensor, wh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (*made.boxes(epoch, index, wh), made.photometric(epoch, index))


def test_a_sample_gets_the_same_in_any_batch_order_and_thread() -> None:
    made, index, wh = plan(), torch.arange(300), sizes(300)
    whole = everything(made, 5, index, wh)
    everything(made, 6, index, wh)
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    for got, want in zip(everything(made, 5, index[shuffled], wh[shuffled]), whole, strict=True):
        assert torch.equal(got, want[shuffled])
    with ThreadPoolExecutor(4) as pool:
        singles = list(pool.map(lambda i: everything(made, 5, index[i : i + 1], wh[i : i + 1]), range(300)))
    for column, want in zip(zip(*singles, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(column), want)
    for got, want in zip(everything(pickle.loads(pickle.dumps(made)), 5, index, wh), whole, strict=True):
        assert torch.equal(got, want)
    strided = everything(made, 5, torch.arange(0, 600).view(300, 2)[:, 0], wh.repeat(1, 2)[:, :2])
    for got, want in zip(strided, everything(made, 5, torch.arange(0, 600, 2), wh), strict=True):
        assert torch.equal(got, want)


DIGEST = """
import hashlib, numpy as np, torch
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
made = train_plan(5000, seed=3, recipe=named_recipe("official"), image_size=224, shuffle="blocks", block=64)
wh = torch.from_numpy(np.random.default_rng(0).integers(1, 2000, (200, 2)))
parts = (made.order(1), *made.boxes(1, torch.arange(200), wh), made.photometric(1, torch.arange(200)))
print(hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest())
"""


def test_another_process_without_the_compiler_agrees() -> None:
    made = plan(3, shuffle="blocks", block=64)
    parts = (made.order(1), *everything(made, 1, torch.arange(200), sizes(200)))
    here = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONWARNINGS": "ignore"}
    there = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_the_source_length_does_not_move_a_sample() -> None:
    longer = train_plan(SAMPLES * 3, seed=0, recipe=named_recipe("official"), image_size=224)
    for a, b in zip(*(everything(m, 0, torch.arange(50), sizes(50)) for m in (plan(), longer)), strict=True):
        assert torch.equal(a, b)


def test_golden_values() -> None:
    """A changed stream changes every run's crops: then these numbers change, and resumed runs with them."""
    assert plan(0).order(0)[:6].tolist() == [1704, 3396, 4874, 4685, 264, 2983]
    assert plan(0, shuffle="blocks", block=16, group=16).order(7)[:6].tolist() == [1891, 2283, 4817, 4784, 4845, 4255]
    box, _ = plan(42).boxes(3, torch.tensor([0, 4999]), torch.tensor([[500, 375], [333, 500]]))
    assert box.int()[0].tolist() == [[114, 28, 285, 218], [232, 34, 224, 183]]
    assert box.int()[1].tolist() == [[20, 41, 311, 319], [13, 124, 185, 228]]
    _, flip = plan(42).boxes(3, torch.arange(8), torch.full((8, 2), 100))
    assert flip.int().T.tolist() == [[0, 1, 0, 0, 1, 0, 0, 0], [0, 1, 1, 1, 0, 1, 0, 1]]
    params = torch.tensor(
        [0.6798228025436401, 0.8580096960067749, 1.0289546251296997, 0.06324297934770584, 5, 1, 0, 256]
    )
    assert torch.equal(plan(42).photometric(3, torch.tensor([0]))[0, 1], params)


# --- recipes and refusals


def test_recipes_are_the_published_ones() -> None:
    first, second = named_recipe("official").views
    assert (first.blur_p, first.solarize_p, second.blur_p, second.solarize_p) == (1.0, 0.0, 0.1, 0.2)
    for view in (first, second, *named_recipe("paper").views):
        assert (view.crop_scale, view.crop_ratio, view.flip_p) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
        assert (view.jitter_p, view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.4, 0.4, 0.2, 0.1)
        assert (view.grayscale_p, view.blur_sigma, view.solarize_threshold) == (0.2, (0.1, 2.0), 128)
    assert {(view.blur_p, view.solarize_p) for view in named_recipe("paper").views} == {(0.5, 0.1)}
    small = named_recipe("small").views
    assert {(view.crop_scale, view.blur_p, view.solarize_p) for view in small} == {((0.2, 1.0), 0.0, 0.1)}
    assert len(small) == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"flip_p": 1.1},
        {"blur_p": -0.1},
        {"hue": 0.6},
        {"contrast": -1.0},
        {"brightness": float("nan")},
        {"crop_scale": (0.5, 0.1)},
        {"crop_scale": (0.5, 1.5)},
        {"blur_sigma": (0.0, 1.0)},
        {"solarize_threshold": 300},
    ],
)
def test_impossible_strengths_are_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        ViewRecipe(**bad)  # type: ignore[arg-type]


def test_unknown_names_and_values_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'official'"):
        named_recipe("oficial")
    with pytest.raises(UserError, match="no view"):
        Recipe("empty", ())
    with pytest.raises(UserError, match="crop = 257 is larger than resize = 256"):
        eval_plan(5, crop=257)
    for bad in ({"samples": 0}, {"image_size": 0}, {"block": 0}, {"group": -1}, {"seed": -1}, {"seed": 2**63}):
        arguments = {"samples": 5, "seed": 0, "recipe": named_recipe("small"), "image_size": 32, **bad}
        with pytest.raises(UserError, match=next(iter(bad))):
            train_plan(**arguments)
    with pytest.raises(UserError, match="shuffle = 'none'"):
        plan(shuffle="none")
    with pytest.raises(UserError, match="samples = 0"):
        eval_plan(0)


@pytest.mark.parametrize("made", [plan(), eval_plan(SAMPLES)], ids=["train", "eval"])
def test_calls_outside_the_source_are_refused(made: Plan) -> None:
    wh = torch.tensor([[10, 10], [10, 10]])
    for outside in (-1, SAMPLES):
        index = torch.tensor([0, outside])
        with pytest.raises(ValueError, match=f"sample {outside} is outside the source of {SAMPLES}"):
            made.boxes(0, index, wh)
        with pytest.raises(ValueError, match=f"sample {outside} is outside the source of {SAMPLES}"):
            made.photometric(0, index)
    good = torch.tensor([0, 7])
    for empty in ([0, 10], [10, 0], [-1, 5]):
        with pytest.raises(ValueError, match=f"sample 7 has no pixels: width {empty[0]}, height {empty[1]}"):
            made.boxes(0, good, torch.tensor([[10, 10], empty]))
    for call in (lambda: made.boxes(-1, good, wh), lambda: made.photometric(-1, good), lambda: made.order(-1)):
        with pytest.raises(ValueError, match="epoch -1"):
            call()
    for index, shape in ((good[:1], wh), (good[None], wh), (good.int(), wh), (good, wh[:, :1]), (good, wh.float())):
        with pytest.raises(AssertionError):
            made.boxes(0, index, shape)
    assert made.boxes(0, good[:0], wh[:0])[0].shape == (0, made.views, 4)
    assert made.photometric(0, good[:0]).shape == (0, made.views, 8)
