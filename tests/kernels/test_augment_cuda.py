"""The CUDA augmentation kernel against the reference, bit for bit: its source and its launches run on the CPU.

The last tests launch it on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nvrtc import require_compiler
from simt import run_on_host
from toolchains import assert_no_spills
from torch import Tensor

from fastvicreg.contracts import JITTER_ORDERS, Photometric, UserError, photometric_identity
from fastvicreg.kernels import augment as package
from fastvicreg.kernels import dispatch
from fastvicreg.kernels.augment import IMAGENET_MEAN, IMAGENET_STD, augment
from fastvicreg.kernels.augment import cuda as augment_cuda
from fastvicreg.kernels.cuda import ARCHITECTURES, compile_cubin

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
H200 = 227 << 10
ULPS = {"RECIPROCAL_ULPS": 0}  # how far the emulated reciprocal errs
P = Photometric


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The implementation's own launches, run by the emulator on CPU tensors."""
    seeds = itertools.count()

    def kernel(source: str, name: str, *, defines: dict[str, Any], device: object) -> Callable[..., None]:
        def launch(grid: tuple[int, int], block: int, *arguments: Any, shared_bytes: int) -> None:
            defined = {**defines, **ULPS}
            run_on_host(
                source, name, grid, block, arguments, shared_bytes=shared_bytes, defines=defined, seed=next(seeds)
            )

        return launch

    monkeypatch.setattr(augment_cuda, "kernel", kernel)
    monkeypatch.setattr(augment_cuda, "shared_limit", lambda device: H200)


def noise(batch: int, views: int, height: int, width: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, views, height, width, 3), dtype=torch.uint8, generator=random)


def params_of(*rows: dict[str, float]) -> Tensor:
    params = photometric_identity(len(rows), 1)
    for row, values in zip(params[:, 0], rows, strict=True):
        for name, value in values.items():
            row[P[name]] = value
    return params


def mixed_params(batch: int, views: int, seed: int = 0) -> Tensor:
    """Any mixture of operations, each with even odds, over twice the official range of hue."""
    random = torch.Generator().manual_seed(seed)
    share = torch.rand(batch, views, len(P), generator=random)
    low = torch.tensor([0.6, 0.6, 0.6, -0.2, 0, 1, 0.1, 0])
    high = torch.tensor([1.4, 1.4, 1.4, 0.2, len(JITTER_ORDERS) - 0.01, 1, 2.4, 256])
    params = low + share * (high - low)
    params[..., P.ORDER].floor_()
    asked = torch.rand(batch, views, len(P), generator=random) < 0.5
    return torch.where(asked, params, photometric_identity(batch, views))


def assert_equal(crops: Tensor, params: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Every bit of every view is the reference's."""
    options = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "dtype": dtype}
    ours = augment_cuda.augment(crops, params, **options)
    for view, wanted in zip(ours, augment(crops, params, impl="reference", **options), strict=True):
        assert view.dtype == dtype
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(view, wanted), f"{int((view != wanted).sum())} of {view.numel()} differ"


SINGLE: list[dict[str, float]] = [
    *({"ORDER": 0, name: x} for name in ("BRIGHTNESS", "CONTRAST", "SATURATION") for x in (0.0, 0.6, 0.93, 1.4, 9.0)),
    *({"ORDER": 0, "HUE": turns} for turns in (-0.5, -0.1, -0.003, 0.0, 0.05, 0.1, 0.5)),
    *({"BLUR_SIGMA": sigma} for sigma in (0.1, 0.5, 1.0, 1.4, 1.415, 1.7, 2.0, 2.4)),
    *({"SOLARIZE": threshold} for threshold in (0, 77.5, 128, 255)),
    *({"GRAYSCALE": 1}, {"GRAYSCALE": 1, "BLUR_SIGMA": 1.2, "SOLARIZE": 77}, {}),
]


@pytest.mark.slow
@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize(("height", "width"), [(24, 32), (19, 21)])
def test_each_operation_is_the_references(height: int, width: int) -> None:
    for dtype in DTYPES:
        assert_equal(noise(len(SINGLE), 1, height, width), params_of(*SINGLE), dtype)


@pytest.mark.usefixtures("on_host")
def test_every_order_of_the_jitter() -> None:
    factors = {"BRIGHTNESS": 0.7, "CONTRAST": 1.4, "SATURATION": 1.3, "HUE": 0.09}
    params = params_of(*({**factors, "ORDER": order} for order in range(len(JITTER_ORDERS))))
    crops = noise(1, 1, 20, 24).expand(len(JITTER_ORDERS), -1, -1, -1, -1)
    assert_equal(crops, params)
    params[..., P.BRIGHTNESS] = 1  # which does nothing, wherever it stands
    assert_equal(crops, params)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 9), (9, 1), (2, 2), (7, 5), (16, 17), (32, 32), (37, 37), (50, 18), (13, 200), (96, 96)],
)
def test_mixtures_at_any_size(height: int, width: int, dtype: torch.dtype) -> None:
    views = 1 + (height + width) % 3
    batch = 1 if height == 96 else 5
    assert_equal(noise(batch, views, height, width), mixed_params(batch, views, seed=height + width), dtype)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("sigma", [0.0, 0.7, 2.0])
def test_images_of_224_pixels(sigma: float) -> None:
    params = params_of({"ORDER": 13, "CONTRAST": 1.3, "SATURATION": 0.8, "HUE": 0.1, "BLUR_SIGMA": sigma})
    assert_equal(noise(1, 1, 224, 224), params, torch.bfloat16)


@pytest.mark.usefixtures("on_host")
def test_the_blurs_weights_over_its_whole_range() -> None:
    sigmas = torch.linspace(0.02, 2.44, 64).tolist()
    assert_equal(noise(64, 1, 9, 11), params_of(*({"BLUR_SIGMA": sigma} for sigma in sigmas)))


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("name", ["BRIGHTNESS", "CONTRAST", "SATURATION"])
def test_blends_whose_roundings_decide_a_level(name: str) -> None:
    """Factors next to a quotient of two levels: a product is whole but for its last bits."""
    random = torch.Generator().manual_seed(0)
    quotients = torch.randint(64, 256, (16,), generator=random) / torch.randint(128, 256, (16,), generator=random)
    factors = [(quotients.view(torch.int32) + ulps).view(torch.float32) for ulps in (-40, -1, 0, 1)]
    ramp = torch.arange(256, dtype=torch.uint8)
    crop = torch.stack([ramp, ramp.roll(-85), ramp.roll(-171)], -1).view(1, 1, 16, 16, 3)
    params = params_of(*({"ORDER": 0, name: factor} for factor in torch.cat(factors).tolist()))
    assert_equal(crop.expand(len(params), -1, -1, -1, -1), params)


@pytest.mark.slow
@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("ulps", [-1, 0, 1])
def test_hue_forgives_the_reciprocals_last_bit(ulps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every quotient that the conversion takes: colours with a channel at 0, and with two equal ones."""
    monkeypatch.setitem(ULPS, "RECIPROCAL_ULPS", ulps)
    ramp = torch.arange(256, dtype=torch.uint8)
    a, b = torch.meshgrid(ramp, ramp, indexing="ij")
    faces = [torch.stack(face, -1) for face in ((a, b, torch.zeros_like(a)), (a, b, b))]
    crops = torch.stack([face.roll(c, -1) for face in faces for c in range(3)])[:, None]
    assert_equal(crops, params_of(*({"ORDER": 0, "HUE": shift} for shift in (0, 0.1, -0.1, 0.37, -0.4, 0.002))))


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("limit", [5200, 7000, 8300])
def test_images_that_do_not_fit_a_block_are_done_in_strips(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment_cuda, "shared_limit", lambda device: limit)
    crops, params = noise(6, 2, 61, 28), mixed_params(6, 2, seed=1)
    params[0, :, P.BLUR_SIGMA], params[1, :, P.BLUR_SIGMA] = 0.9, 2.0
    params[:2, :, P.ORDER], params[:2, :, P.CONTRAST] = 5, 1.3
    assert_equal(crops, params, torch.float16)


@pytest.mark.usefixtures("on_host")
def test_any_strides_and_starts() -> None:
    crops, params = noise(4, 2, 20, 24), mixed_params(4, 2, seed=3)
    shifted = torch.empty(crops.numel() + 1, dtype=torch.uint8)[1:].view(crops.shape).copy_(crops)
    planar = crops.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    for strided in (shifted, planar, crops.transpose(0, 1).contiguous().transpose(0, 1)):
        assert_equal(strided, params)


@pytest.mark.usefixtures("on_host")
def test_the_operator_compiles_and_has_a_true_fake() -> None:
    crops, params = noise(2, 3, 12, 16), mixed_params(2, 3)
    recipes = augment_cuda.recipes(params)
    levels = augment_cuda.levels(IMAGENET_MEAN, IMAGENET_STD, torch.bfloat16, "cpu")
    torch.library.opcheck(augment_cuda.augment_views, (crops, recipes, levels))

    def doubled(crops: Tensor) -> Tensor:
        return 2 * augment_cuda.augment_views(crops, recipes, levels)

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(crops), doubled(crops))


@pytest.mark.usefixtures("on_host")
def test_what_the_kernel_cannot_do_is_named() -> None:
    options = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "dtype": torch.float32}
    with pytest.raises(UserError, match=r"up to sigma 2.4, not 2.45; use 'reference'"):
        augment_cuda.augment(noise(1, 1, 8, 8), params_of({"BLUR_SIGMA": 2.45}), **options)
    for height, width in ((40, 7000), (2, 20000)):
        with pytest.raises(UserError, match=f"rows of {width} pixels; use 'reference'"):
            augment_cuda.augment(noise(1, 1, height, width), params_of({}), **options)
    levels = augment_cuda.levels(IMAGENET_MEAN, IMAGENET_STD, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"recipes \(2, 1, 15\) int32"):
        augment_cuda.augment_views(noise(2, 1, 8, 8), augment_cuda.recipes(params_of({})), levels)


def test_crops_on_the_host_are_refused() -> None:
    with pytest.raises(UserError, match=r"'cuda' cannot run here: .* not on cpu; choose auto or reference"):
        augment(noise(1, 1, 8, 8), params_of({}), impl="cuda")


@pytest.mark.parametrize(("why", "name"), [("", "cuda"), ("no compiler", "reference")])
def test_what_auto_takes_on_a_gpu_is_logged(
    why: str, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(augment_cuda, "cuda_obstacle", lambda: why)
    package.choose.cache_clear()
    with caplog.at_level("INFO", logger=dispatch.__name__):
        assert [package.choose("auto", "cuda", torch.float32).name for _ in range(2)] == [name] * 2
    assert [record.getMessage() for record in caplog.records] == [
        f"augment kernel for float32 on cuda: {name} (auto{why and f'; not cuda: {why}'})"
    ]
    package.choose.cache_clear()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_widths_compile_without_spills(arch: str) -> None:
    require_compiler()
    for source, defines in augment_cuda.variants():
        usage = compile_cubin(source, arch, defines=defines).usage["augment"]
        assert_no_spills(usage, defines)
        assert usage.registers * augment_cuda.MOST_THREADS <= 1 << 16
        assert usage.shared_bytes == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 96), (32, 32), (37, 37), (1, 9), (400, 500)])
def test_on_the_device_every_bit_is_the_references(height: int, width: int, dtype: torch.dtype) -> None:
    crops, params = noise(16, 2, height, width), mixed_params(16, 2, seed=height)
    views = augment(crops.cuda(), params, dtype=dtype, impl="cuda")
    for view, wanted in zip(views, augment(crops, params, dtype=dtype, impl="reference"), strict=True):
        assert torch.equal(view.cpu(), wanted)


@pytest.mark.gpu
def test_on_the_device_every_colour_keeps_its_hue() -> None:
    ramp = torch.arange(256, dtype=torch.uint8)
    params = params_of(*({"ORDER": 0, "HUE": 0.1} for _ in range(64)))
    for first in range(0, 256, 64):
        colours = torch.meshgrid(ramp[first : first + 64], ramp, ramp, indexing="ij")
        crops = torch.stack(colours, -1)[:, None]
        (view,), (wanted,) = augment(crops.cuda(), params, impl="cuda"), augment(crops, params, impl="reference")
        assert torch.equal(view.cpu(), wanted)


@pytest.mark.gpu
def test_a_captured_graph_replays_with_new_recipes() -> None:
    host, params = noise(4, 2, 96, 96), mixed_params(4, 2)
    crops, recipes = host.cuda(), augment_cuda.recipes(params).cuda()
    levels = augment_cuda.levels(IMAGENET_MEAN, IMAGENET_STD, torch.float16, crops.device)
    augment_cuda.augment_views(crops, recipes, levels)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = augment_cuda.augment_views(crops, recipes, levels)
    for seed in (1, 2):
        params = mixed_params(4, 2, seed=seed)
        recipes.copy_(augment_cuda.recipes(params))
        out.fill_(float("nan"))
        graph.replay()
        for view_BHWC, wanted in zip(out, augment(host, params, dtype=torch.float16, impl="reference"), strict=True):
            assert torch.equal(view_BHWC.permute(0, 3, 1, 2).cpu(), wanted)


@pytest.mark.gpu
def test_on_the_device_the_operator_compiles_whole() -> None:
    crops, params = noise(4, 2, 32, 32).cuda(), mixed_params(4, 2)
    recipes = augment_cuda.recipes(params).cuda()
    levels = augment_cuda.levels(IMAGENET_MEAN, IMAGENET_STD, torch.bfloat16, crops.device)

    def total(crops: Tensor) -> Tensor:
        return augment_cuda.augment_views(crops, recipes, levels).float().sum((2, 3, 4))

    assert torch.allclose(torch.compile(total, fullgraph=True)(crops), total(crops), rtol=1e-4)
