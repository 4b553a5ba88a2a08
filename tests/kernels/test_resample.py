"""The resampler's claims: Pillow's pixels bit for bit, in any shape, from any thread; clear refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from fastvicreg.contracts import UserError
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.resample import resample_views, resampler

BICUBIC = Image.Resampling.BICUBIC
one_call = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 orders the two passes differently"
)


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Random bytes, or only 0 and 255: these overshoot, so that clipping and every rounding tell."""
    image_HWC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image_HWC if rng.random() < 0.5 else np.where(image_HWC > 127, np.uint8(255), np.uint8(0))


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Spectrum of a photograph: coarse structure and a little grain."""
    coarse = Image.fromarray(noise(rng, 12, 16)).resize((width, height), BICUBIC)
    grain_HWC = rng.normal(0, 6, (height, width, 3))
    return (np.asarray(coarse) + grain_HWC).clip(0, 255).astype(np.uint8)


def crop_boxes(rng: np.random.Generator, height: int, width: int, views: int) -> np.ndarray:
    """Integral boxes of any size and aspect ratio, single pixels and the whole image among them."""
    box_V4 = np.empty((views, 4))
    for v in range(views):
        w = int(rng.choice([1, width, int(rng.integers(1, width + 1))]))
        h = int(rng.choice([1, height, int(rng.integers(1, height + 1))]))
        box_V4[v] = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1), w, h
    return box_V4


def resampled(image_HWC: np.ndarray, box_V4: Any, side: int, flip_V: Any = None, **options: Any) -> np.ndarray:
    box_V4 = np.asarray(box_V4, dtype=np.float64)
    flip_V = np.zeros(len(box_V4), dtype=bool) if flip_V is None else np.asarray(flip_V)
    out_VSSC = np.full((len(box_V4), side, side, 3), 77, dtype=np.uint8)
    resample_views(image_HWC, box_V4, flip_V, out_VSSC, **options)
    return out_VSSC


def centre_crop(width: int, height: int, resize: int, side: int) -> tuple[tuple[int, int, int, int], list[float]]:
    """torchvision's Resize(resize) and CenterCrop(side): ((out_w, out_h, left, top), the box in source pixels)."""
    short, long = sorted((width, height))
    out_w, out_h = resize, int(resize * long / short)
    if width > height:
        out_w, out_h = out_h, out_w
    left, top = round((out_w - side) / 2), round((out_h - side) / 2)
    box = [left * width / out_w, top * height / out_h, side * width / out_w, side * height / out_h]
    return (out_w, out_h, left, top), box


@pytest.mark.parametrize("side", [1, 5, 16, 31, 32, 33, 64, 96, 128, 160, 224])
def test_numba_equals_the_reference_bit_for_bit(side: int) -> None:
    rng = np.random.default_rng(side)
    sides = [1, 2, 3, 15, 16, 17, side, side + 1, 2 * side, 3 * side + 5]
    for _ in range(40):
        height, width = (int(rng.choice([*sides, int(rng.integers(1, 400))])) for _ in range(2))
        image_HWC = noise(rng, height, width)
        box_V4, flip_V = crop_boxes(rng, height, width, 2), rng.random(2) < 0.5
        expected = resampled(image_HWC, box_V4, side, flip_V, impl="reference")
        np.testing.assert_array_equal(resampled(image_HWC, box_V4, side, flip_V), expected, f"{height=} {box_V4}")


@one_call
@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_a_crop_equals_one_call_of_pillow(impl: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        side, dw = int(rng.integers(1, 80)), int(rng.integers(-40, 60))
        width = max(side + dw, 1)
        # Around the shape at which the passes change places: h - S = 2 (w - S).
        height = max(side + 2 * dw + int(rng.integers(-2, 3)), 1)
        image_HWC = noise(rng, height + 4, width + 3)
        out_VSSC = resampled(image_HWC, [[3, 4, width, height]] * 2, side, [False, True], impl=impl)
        crop = Image.fromarray(image_HWC).crop((3, 4, 3 + width, 4 + height))
        expected_SSC = np.asarray(crop.resize((side, side), BICUBIC))
        np.testing.assert_array_equal(out_VSSC[0], expected_SSC, f"{width=} {height=} {side=}")
        np.testing.assert_array_equal(out_VSSC[1], expected_SSC[:, ::-1])


@one_call
@pytest.mark.parametrize("impl", ["reference", "numba"])
@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (300, 500), (500, 300), (90, 1200), (1200, 90), (60, 70)])
def test_image_support_equals_resizing_the_whole_image_and_cropping(shape: tuple[int, int], impl: str) -> None:
    height, width = shape
    image_HWC = noise(np.random.default_rng(height), height, width)
    (out_w, out_h, left, top), box = centre_crop(width, height, resize=256, side=224)
    whole = Image.fromarray(image_HWC).resize((out_w, out_h), BICUBIC)
    expected_SSC = np.asarray(whole)[top : top + 224, left : left + 224]
    out_VSSC = resampled(image_HWC, [box, box], 224, [False, True], support="image", impl=impl)
    np.testing.assert_array_equal(out_VSSC[0], expected_SSC)
    np.testing.assert_array_equal(out_VSSC[1], expected_SSC[:, ::-1])


def test_numba_equals_the_reference_at_every_window_of_a_resize() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        height, width, side = (int(n) for n in rng.integers(1, 120, 3))
        out_w, out_h = side + int(rng.integers(0, 60)), side + int(rng.integers(0, 60))
        left, top = rng.integers(0, out_w - side + 1), rng.integers(0, out_h - side + 1)
        box = [left * width / out_w, top * height / out_h, side * width / out_w, side * height / out_h]
        image_HWC = noise(rng, height, width)
        expected = resampled(image_HWC, [box], side, [True], support="image", impl="reference")
        np.testing.assert_array_equal(resampled(image_HWC, [box], side, [True], support="image"), expected, str(box))


@pytest.mark.parametrize("impl", ["auto", *KERNELS["resample"].names])
def test_crop_support_reads_nothing_around_the_box(impl: str) -> None:
    rng = np.random.default_rng(3)
    inside_HWC = noise(rng, 90, 120)
    around_HWC = noise(rng, 90, 120)
    around_HWC[20:70, 30:100] = inside_HWC[20:70, 30:100]
    boxes = [[30, 20, 70, 50]]
    np.testing.assert_array_equal(
        resampled(inside_HWC, boxes, 32, impl=impl), resampled(around_HWC, boxes, 32, impl=impl)
    )


@pytest.mark.parametrize(
    ("support", "box", "mean", "largest"),
    [
        ("crop", [10, 20, 300, 250], 0.01, 2),
        ("crop", [100, 3, 150, 370], 0.3, 3),  # tall: the reference goes vertically first, torch never does
        ("image", centre_crop(500, 375, resize=256, side=224)[1], 0.01, 2),
    ],
)
def test_torch_stays_near_the_reference(support: str, box: list[float], mean: float, largest: int) -> None:
    image_HWC = smooth(np.random.default_rng(4), 375, 500)
    torch_VSSC, reference_VSSC = (
        resampled(image_HWC, [box, box], 224, [False, True], support=support, impl=impl).astype(int)
        for impl in ("torch", "reference")
    )
    error_VSSC = np.abs(torch_VSSC - reference_VSSC)
    assert error_VSSC.mean() < mean
    assert error_VSSC.max() <= largest


def test_many_threads_give_what_one_gives() -> None:
    rng = np.random.default_rng(5)
    images = [noise(rng, int(rng.integers(20, 300)), int(rng.integers(20, 300))) for _ in range(64)]
    boxes = [crop_boxes(rng, image_HWC.shape[0], image_HWC.shape[1], 3) for image_HWC in images]
    out_BVSSC = np.zeros((64, 3, 64, 64, 3), dtype=np.uint8)
    flip_V = np.array([True, False, True])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: resample_views(images[i], boxes[i], flip_V, out_BVSSC[i]), range(64)))
    for image_HWC, box_V4, out_VSSC in zip(images, boxes, out_BVSSC, strict=True):
        np.testing.assert_array_equal(out_VSSC, resampled(image_HWC, box_V4, 64, flip_V, impl="reference"))


@pytest.mark.parametrize("impl", ["auto", *KERNELS["resample"].names])
def test_only_the_views_are_written(impl: str) -> None:
    rng = np.random.default_rng(6)
    out_BVSSC = np.full((3, 2, 20, 20, 3), 77, dtype=np.uint8)
    resample_views(noise(rng, 50, 40), crop_boxes(rng, 50, 40, 2), np.array([False, True]), out_BVSSC[1], impl=impl)
    assert (out_BVSSC[0] == 77).all()
    assert (out_BVSSC[2] == 77).all()
    assert (out_BVSSC[1] != 77).any()


@pytest.mark.parametrize("impl", ["auto", *KERNELS["resample"].names])
@pytest.mark.parametrize("layout", ["every second pixel", "upside down", "channels swapped", "planar", "read-only"])
def test_an_image_may_have_any_layout(layout: str, impl: str) -> None:
    image_HWC = noise(np.random.default_rng(7), 60, 80)
    variants = {
        "every second pixel": image_HWC[::2, ::2],
        "upside down": image_HWC[::-1],
        "channels swapped": image_HWC[..., ::-1],
        "planar": np.asfortranarray(image_HWC),
        "read-only": np.frombuffer(image_HWC.tobytes(), np.uint8).reshape(image_HWC.shape),
    }
    variant_HWC = variants[layout]
    boxes = [[2, 3, 30, 20]]
    expected = resampled(variant_HWC.copy(order="C"), boxes, 24, impl=impl)
    np.testing.assert_array_equal(resampled(variant_HWC, boxes, 24, impl=impl), expected)


IMAGE_HWC = np.zeros((30, 40, 3), dtype=np.uint8)
OUT_VSSC = np.zeros((1, 8, 8, 3), dtype=np.uint8)
REFUSED = {
    "empty box": ({"box_V4": [[0, 0, 0, 5]]}, "empty or beyond"),
    "negative offset": ({"box_V4": [[-1, 0, 5, 5]]}, "empty or beyond"),
    "beyond the right edge": ({"box_V4": [[36, 0, 5, 5]]}, "40 x 30"),
    "beyond the lower edge": ({"box_V4": [[0, 26, 5, 5]]}, "empty or beyond"),
    "not a number": ({"box_V4": [[0, 0, np.nan, 5]]}, "empty or beyond"),
    "fractional crop": ({"box_V4": [[0.5, 0, 5, 5]]}, "not integral"),
    "off the grid": ({"box_V4": [[0.3, 0, 20, 30]], "support": "image"}, "no window of 8 pixels"),
    "a box too many": ({"box_V4": [[0, 0, 5, 5]] * 2}, "one box a view"),
    "flips of another dtype": ({"flip_V": np.zeros(1, dtype=np.uint8)}, "flip_V must be 1 bools"),
    "image of another dtype": ({"image_HWC": IMAGE_HWC.astype(np.float32)}, "image_HWC must be uint8"),
    "grey image": ({"image_HWC": IMAGE_HWC[..., 0]}, "RGB"),
    "no pixels": ({"image_HWC": IMAGE_HWC[:0]}, "shape"),
    "views that are not square": ({"out_VSSC": np.zeros((1, 8, 9, 3), dtype=np.uint8)}, "square"),
    "views with gaps": ({"out_VSSC": np.zeros((1, 8, 16, 3), dtype=np.uint8)[:, :, ::2]}, "C-contiguous"),
    "unknown support": ({"support": "box"}, "crop, image"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "image_HWC": IMAGE_HWC,
        "box_V4": [[0, 0, 5, 5]],
        "flip_V": np.zeros(1, dtype=bool),
        "out_VSSC": OUT_VSSC,
    }
    resample_views(**arguments)
    with pytest.raises(ValueError, match=message):
        resample_views(**(arguments | change))


def test_an_unknown_impl_is_named_with_its_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'numba'"):
        resampler("numbas")


@pytest.mark.parametrize("impl", ["auto", *KERNELS["resample"].names])
def test_a_resampler_is_resample_views_with_its_impl(impl: str) -> None:
    rng = np.random.default_rng(8)
    image_HWC, box_V4 = noise(rng, 70, 50), np.array([[3.0, 2.0, 30.0, 60.0]])
    out_VSSC = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    resampler(impl)(image_HWC, box_V4, np.array([True]), out_VSSC, "crop")
    np.testing.assert_array_equal(out_VSSC, resampled(image_HWC, box_V4, 16, [True], impl=impl))
