"""The resampler beside its peers: two random resized crops of a typical ImageNet image, on one thread."""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.resample import resample_views
from fastvicreg.profiles import measure
from fastvicreg.profiles.bench.peers import random_resized_crop
from fastvicreg.profiles.bench.registry import Benchmark, Options
from fastvicreg.threads import one_thread

COLUMNS = ("impl", "size", "ms", "spread", "mean_error", "max_error")

HEIGHT, WIDTH = 375, 500  # the median ImageNet image
VIEWS = 2

Work = tuple[np.ndarray, np.ndarray, np.ndarray]  # image_HWC, box_V4, flip_V
Resample = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def run(size: int = 224, images: int = 64, repeats: int = 7, seed: int = 0) -> list[dict[str, Any]]:
    """One row an implementation: ms per image (both crops), mean and largest error in 1/255 against the reference.

    "cv2-area" is OpenCV's INTER_AREA, the resize of FFCV's own pipelines, where OpenCV is installed.
    """
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    work = [(_photograph(rng), _boxes(draw), rng.random(VIEWS) < 0.5) for _ in range(images)]
    shape = (VIEWS, size, size, 3)
    truth = _crops(_impl("reference"), work, shape)
    implementations = {name: _impl(name) for name in KERNELS["resample"].runnable("cpu", torch.uint8)}
    if importlib.util.find_spec("cv2"):
        implementations["cv2-area"] = _cv2_area()
    with one_thread():
        errors = {name: np.abs(_crops(call, work, shape) - truth) for name, call in implementations.items()}
        out_VSSC = np.empty(shape, dtype=np.uint8)
        timings = measure.interleaved(
            {name: _pass_over(work, call, out_VSSC) for name, call in implementations.items()}, repeats=repeats
        )
    return [
        {
            "impl": name,
            "size": size,
            "ms": timings[name].ms / images,
            "spread": timings[name].spread,
            "mean_error": float(errors[name].mean()),
            "max_error": int(errors[name].max()),
        }
        for name in implementations
    ]


def _photograph(rng: np.random.Generator) -> np.ndarray:
    """Coarse structure and some grain."""
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    image_HWC = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return (image_HWC + rng.normal(0, 8, image_HWC.shape)).clip(0, 255).astype(np.uint8)


def _boxes(draw: random.Random) -> np.ndarray:
    """VIEWS boxes, x, y, w and h, as a peer's RandomResizedCrop draws them."""
    edges = [random_resized_crop(WIDTH, HEIGHT, draw) for _ in range(VIEWS)]
    return np.array([(left, top, right - left, bottom - top) for left, top, right, bottom in edges], dtype=np.float64)


def _impl(name: str) -> Resample:
    return lambda image_HWC, box_V4, flip_V, out_VSSC: resample_views(image_HWC, box_V4, flip_V, out_VSSC, impl=name)


def _cv2_area() -> Resample:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)

    def resample(image_HWC: np.ndarray, box_V4: np.ndarray, flip_V: np.ndarray, out_VSSC: np.ndarray) -> None:
        for (x, y, w, h), flip, out_SSC in zip(box_V4.astype(int), flip_V, out_VSSC, strict=True):
            view_SSC = cv2.resize(image_HWC[y : y + h, x : x + w], out_SSC.shape[:2], interpolation=cv2.INTER_AREA)
            out_SSC[:] = view_SSC[:, ::-1] if flip else view_SSC

    return resample


def _crops(call: Resample, work: list[Work], shape: tuple[int, ...]) -> np.ndarray:
    """All the work's views, as signed integers."""
    out_BVSSC = np.empty((len(work), *shape), dtype=np.uint8)
    for (image_HWC, box_V4, flip_V), out_VSSC in zip(work, out_BVSSC, strict=True):
        call(image_HWC, box_V4, flip_V, out_VSSC)
    return out_BVSSC.astype(np.int16)


def _pass_over(work: list[Work], call: Resample, out_VSSC: np.ndarray) -> Callable[[], None]:
    def once() -> None:
        for image_HWC, box_V4, flip_V in work:
            call(image_HWC, box_V4, flip_V, out_VSSC)

    return once


@dataclass(frozen=True)
class BenchOptions(Options):
    """The resampler."""

    size: int = 224
    """Side of a view in pixels."""


BENCHMARK = Benchmark(run, COLUMNS, key=("impl", "size"), options=BenchOptions)
