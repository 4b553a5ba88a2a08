"""Photometric augmentation against the official recipe's own operations, Pillow's, image by image."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvicreg.contracts import JITTER_ORDERS, Photometric, UserError, photometric_identity
from fastvicreg.kernels import augment as package
from fastvicreg.kernels.augment import IMAGENET_MEAN, IMAGENET_STD, augment
from fastvicreg.profiles.bench.augment import pillow_view

IMPLS = ("reference", "numba")
P = Photometric


def photos(batch: int, views: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth waves of colour with grain, from black to white: crops_BVHWC."""
    random = np.random.default_rng(seed)
    phase = random.uniform(0, 6, (batch, views, 1, 1, 3))
    y, x = np.mgrid[:height, :width, :1][:2]
    waves = 128 + 125 * np.sin(x / 19 + phase) * np.cos(y / 23 + 2 * phase)
    return torch.from_numpy((waves + random.normal(0, 5, waves.shape)).clip(0, 255).astype(np.uint8))


def noise(batch: int, views: int, height: int, width: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, views, height, width, 3), dtype=torch.uint8, generator=random)


def some_params(batch: int, views: int, seed: int = 0, solarize: bool = True) -> Tensor:
    """Any mixture of operations, each with even odds, over twice the official range of hue."""
    random = np.random.default_rng(seed)
    params = photometric_identity(batch, views).numpy()
    for row in params.reshape(-1, len(P)):
        if random.random() < 0.7:
            row[:4] = (*random.uniform(0.6, 1.4, 3), random.uniform(-0.2, 0.2))
            row[P.ORDER] = random.integers(len(JITTER_ORDERS))
        row[P.GRAYSCALE] = random.random() < 0.5
        row[P.BLUR_SIGMA] = random.uniform(0.1, 2) if random.random() < 0.5 else 0
        row[P.SOLARIZE] = 128 if solarize and random.random() < 0.5 else 256
    return torch.from_numpy(params)


def params_of(**values: float) -> Tensor:
    params = photometric_identity(1, 1)
    for name, value in values.items():
        params[..., P[name]] = value
    return params


def levels(crops_BVHWC: Tensor, params_BVP: Tensor, impl: str) -> Tensor:
    """The views before normalisation, as whole numbers: (B, V, H, W, C)."""
    views = augment(crops_BVHWC, params_BVP, mean=(0, 0, 0), std=(1 / 255,) * 3, impl=impl)
    return torch.stack(views, 1).permute(0, 1, 3, 4, 2).round()


def errors(crops_BVHWC: Tensor, params_BVP: Tensor, impl: str) -> Tensor:
    """Absolute differences from Pillow in levels of 255."""
    ours = levels(crops_BVHWC, params_BVP, impl)
    theirs = [
        [pillow_view(crop.numpy(), params_P) for crop, params_P in zip(crops_VHWC, params_VP, strict=True)]
        for crops_VHWC, params_VP in zip(crops_BVHWC, params_BVP, strict=True)
    ]
    return (ours - torch.from_numpy(np.array(theirs)).float()).abs()


SINGLE: list[dict[str, float]] = [
    *(
        {"ORDER": 0, name: factor}
        for name in ("BRIGHTNESS", "CONTRAST", "SATURATION")
        for factor in (0.0, 0.6, 0.93, 1.0, 1.4, 2.0)
    ),
    *({"ORDER": 0, "HUE": turns} for turns in (-0.5, -0.1, -0.003, 0.05, 0.1, 0.5)),
    *({"BLUR_SIGMA": sigma} for sigma in (0.1, 0.5, 1.0, 1.4, 1.415, 1.7, 2.0, 3.0, 6.5)),
    *({"SOLARIZE": threshold} for threshold in (0, 128, 255)),
    {"GRAYSCALE": 1},
    {"GRAYSCALE": 1, "BLUR_SIGMA": 1.2, "SOLARIZE": 77},
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("picture", [photos, noise])
@pytest.mark.parametrize("values", SINGLE, ids=str)
def test_each_operation_is_pillows(values: dict[str, float], picture, impl: str) -> None:
    error = errors(picture(1, 1, 61, 83), params_of(**values), impl)
    assert (error > 0).float().mean() < 0.001
    assert error.max() <= 2


def test_hue_is_pillows_on_every_clipped_colour() -> None:
    ramp = torch.arange(256, dtype=torch.uint8)
    faces = [torch.stack(torch.broadcast_tensors(ramp[:, None], ramp, ramp[level]), -1) for level in (0, 255)]
    crops = torch.stack([face.roll(c, -1) for face in faces for c in range(3)])[:, None]
    for turns in (0.0, 0.1):
        error = errors(crops, params_of(ORDER=0, HUE=turns).expand(6, 1, -1), "numba")
        assert (error > 0).float().mean() < 1e-4


@pytest.mark.parametrize("impl", IMPLS)
def test_operations_run_in_the_order_asked_for(impl: str) -> None:
    orders = len(JITTER_ORDERS)
    crops = photos(1, 1, 40, 48).expand(orders, 1, -1, -1, -1)
    params = params_of(BRIGHTNESS=0.7, CONTRAST=1.4, SATURATION=1.3, HUE=0.09).repeat(orders, 1, 1)
    params[:, 0, P.ORDER] = torch.arange(orders)
    assert errors(crops, params, impl).mean((1, 2, 3, 4)).max() < 0.01
    assert len({view.numpy().tobytes() for view in levels(crops, params, impl)}) > orders // 2


@pytest.mark.parametrize("impl", IMPLS)
def test_composed_views_are_pillows(impl: str) -> None:
    params = some_params(24, 2, seed=3, solarize=False)
    assert errors(photos(24, 2, 64, 64), params, impl).mean() < 0.01
    assert errors(noise(24, 2, 64, 64), params, impl).mean() < 0.01


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (1, 9), (9, 1), (2, 2), (32, 32), (224, 224)])
def test_implementations_agree_at_any_size(height: int, width: int, views: int) -> None:
    batch = 1 if height == 224 else 9
    crops, params = noise(batch, views, height, width), some_params(batch, views, seed=views)
    reference, compiled = levels(crops, params, "reference"), levels(crops, params, "numba")
    assert (reference != compiled).float().mean() < 1e-4
    params[..., P.SOLARIZE] = 256  # it turns one level's difference at the threshold into many
    assert errors(crops, params, "numba").mean() < 0.02


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_identity_is_exactly_the_normalisation(impl: str, dtype: torch.dtype) -> None:
    crops = noise(3, 2, 13, 17)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    views = augment(crops, photometric_identity(3, 2), dtype=dtype, impl=impl)
    for v, view in enumerate(views):
        wanted = ((crops[:, v].permute(0, 3, 1, 2).float() / 255 - mean) / std).to(dtype)
        assert view.dtype == dtype
        assert torch.equal(view, wanted)


@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision_only_rounds_the_result(impl: str) -> None:
    crops, params = photos(6, 2, 21, 33), some_params(6, 2)
    full = augment(crops, params, impl=impl)
    for dtype in (torch.bfloat16, torch.float16):
        for view, wanted in zip(augment(crops, params, dtype=dtype, impl=impl), full, strict=True):
            assert torch.equal(view, wanted.to(dtype))


@pytest.mark.parametrize("impl", IMPLS)
def test_views_are_channels_last_and_own_memory(impl: str) -> None:
    crops, params = photos(4, 3, 10, 12), some_params(4, 3)
    before = crops.clone(), params.clone()
    views = augment(crops, params, impl=impl)
    assert [tuple(view.shape) for view in views] == [(4, 3, 10, 12)] * 3
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in views)
    for view in views:
        view.zero_()
    assert torch.equal(crops, before[0])
    assert torch.equal(params, before[1])


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_input_gives_the_same_views(impl: str) -> None:
    crops, params = photos(4, 2, 20, 24), some_params(4, 2)
    by_view = crops.transpose(0, 1).contiguous().transpose(0, 1)
    planar = crops.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    wide = torch.zeros(4, 2, 20, 48, 3, dtype=torch.uint8)
    wide[:, :, :, ::2] = crops
    strided_params = torch.stack([params, params], -1)[..., 0]
    wanted = levels(crops, params, impl)
    for strided in (by_view, planar, wide[:, :, :, ::2]):
        assert not strided.is_contiguous()
        assert torch.equal(levels(strided, strided_params, impl), wanted)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_view_does_not_depend_on_the_batch_it_is_in(impl: str) -> None:
    crops, params = photos(5, 2, 31, 30), some_params(5, 2, seed=8)
    together = levels(crops, params, impl)
    for b in range(5):
        assert torch.equal(levels(crops[b : b + 1], params[b : b + 1], impl)[0], together[b])


def test_threads_change_nothing_however_many_and_whoever_calls() -> None:
    crops, params = photos(7, 2, 20, 20), some_params(7, 2)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(augment(crops, params, impl="numba"))
        with ThreadPoolExecutor(4) as pool:
            results += list(pool.map(lambda _: augment(crops, params, impl="numba"), range(8)))
    finally:
        torch.set_num_threads(before)
    for views in results[1:]:
        assert all(torch.equal(left, right) for left, right in zip(views, results[0], strict=True))


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    package.choose.cache_clear()
    crops, params = photos(1, 1, 8, 8), photometric_identity(1, 1)
    with caplog.at_level(logging.INFO, logger="fastvicreg.kernels.dispatch"):
        augment(crops, params)
        augment(crops, params)
    assert [record.getMessage() for record in caplog.records] == ["augment kernel for float32 on cpu: numba (auto)"]


@pytest.mark.parametrize(
    ("column", "value"),
    [("ORDER", 24), ("ORDER", -2), ("HUE", 0.6), ("BRIGHTNESS", -0.1), ("BLUR_SIGMA", float("nan")), ("SOLARIZE", 300)],
)
def test_parameters_out_of_range_are_named(column: str, value: float) -> None:
    params = photometric_identity(3, 2)
    params[2, 1, P[column]] = value
    with pytest.raises(UserError, match=rf"{column} of sample 2, view 1 is {value:g}"):
        augment(photos(3, 2, 8, 8), params)


def test_wrong_arguments_are_named() -> None:
    crops, params = photos(2, 2, 8, 8), photometric_identity(2, 2)
    with pytest.raises(UserError, match=r"uint8 of shape .* torch.float32"):
        augment(crops.float(), params)
    with pytest.raises(UserError, match=r"\(2, 3, 8, 8\)"):
        augment(crops[:, 0].permute(0, 3, 1, 2), params)
    with pytest.raises(UserError, match=r"\(2, 1, 8\)"):
        augment(crops, params[:, :1])
    with pytest.raises(UserError, match=r"torch.float64"):
        augment(crops, params, dtype=torch.float64)
    with pytest.raises(UserError, match="std above 0"):
        augment(crops, params, std=(1, 0, 1))
    with pytest.raises(UserError, match="did you mean 'numba'"):
        augment(crops, params, impl="nunba")


@pytest.mark.gpu
def test_the_reference_gives_the_same_on_the_device() -> None:
    crops, params = photos(6, 2, 50, 40), some_params(6, 2, seed=2)
    device = levels(crops.cuda(), params, "reference")
    assert device.is_cuda
    assert (device.cpu() != levels(crops, params, "reference")).float().mean() < 1e-3
    with pytest.raises(UserError, match="runs on the CPU"):
        augment(crops.cuda(), params, impl="numba")
