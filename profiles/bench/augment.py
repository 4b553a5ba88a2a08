"""The augment benchmark: official views of one batch by every implementation, beside Pillow and batched torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from fastvicreg.contracts import JITTER_ORDERS, Photometric, photometric_identity
from fastvicreg.kernels.augment import IMAGENET_MEAN, IMAGENET_STD, augment
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.profiles.bench.peers_augment import batched_torch
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions
from fastvicreg.profiles.measure import interleaved

COLUMNS = (
    *("impl", "n", "d", "dtype", "device", "threads", "ms", "spread", "repeats", "ratio", "floor_ms", "vs_floor"),
    *("mean_error", "max_error"),
)

P = Photometric


BATCH = {"cpu": 64, "cuda": 512}
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
COMPARED = 32
"""Samples whose views are compared with Pillow's, which takes some 5 ms for each."""


def run(
    batch: int | None = None,
    size: int = 224,
    repeats: int = 7,
    device: str = "cpu",
    seed: int = 0,
    dtype: str | None = None,
) -> list[dict[str, Any]]:
    """One row per implementation, for two views of ``batch`` (n) samples of ``size`` (d) pixels.

    By default 64 samples in fp32 on the CPU, 512 in bf16 on a GPU. The peer on the CPU is "pil", Pillow on one thread,
    as a DataLoader worker runs it; on a GPU "batched-torch", as kornia and torchvision v2 do it (``peers_augment``).
    ``ratio`` is how many times faster than the peer. "cuda-kernel" is the kernel with its recipes on the device, as in
    a captured graph. ``floor_ms`` reads the bytes and writes their values once, into memory that is already there;
    ``vs_floor`` is the time over it. Errors are differences from Pillow's views in levels of 255, before
    normalisation.
    """
    kind = torch.device(device).type
    batch, dtype = batch or BATCH[kind], dtype or DTYPE[kind]
    crops_BVHWC, params_BVP = photo_like(batch, size, seed).to(device), official_params(batch, seed)
    calls = _calls(crops_BVHWC, params_BVP, getattr(torch, dtype))
    peer, *_ = calls
    buffer = torch.empty(crops_BVHWC.shape, dtype=getattr(torch, dtype), device=device)
    timings = interleaved({**calls, "floor": lambda: buffer.copy_(crops_BVHWC)}, repeats=repeats, device=device)
    return [
        {
            "impl": impl,
            "n": batch,
            "d": size,
            "dtype": dtype,
            "device": device,
            "threads": 1 if impl == "pil" else torch.get_num_threads(),
            "ms": timings[impl].ms,
            "spread": timings[impl].spread,
            "repeats": timings[impl].n,
            "ratio": timings[peer].ms / timings[impl].ms,
            "floor_ms": timings["floor"].ms,
            "vs_floor": timings[impl].ms / timings["floor"].ms,
            **({} if impl in ("pil", "cuda-kernel") else _errors(crops_BVHWC, params_BVP, impl)),
        }
        for impl in calls
    ]


def _calls(crops_BVHWC: Tensor, params_BVP: Tensor, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """The peer first."""
    kind = crops_BVHWC.device.type
    options = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "dtype": dtype}
    calls: dict[str, Callable[[], Any]] = {}
    if kind == "cpu":
        calls["pil"] = lambda: _pillow_batch(crops_BVHWC, params_BVP, dtype)
    else:
        there_BVP = params_BVP.to(crops_BVHWC.device)
        calls["batched-torch"] = lambda: batched_torch(crops_BVHWC, there_BVP, **options)
    impls = KERNELS["augment"].runnable(kind, dtype)
    for impl in impls:
        calls[impl] = functools.partial(augment, crops_BVHWC, params_BVP, impl=impl, **options)
    if "cuda" in impls:
        from fastvicreg.kernels.augment import cuda

        recipes_BVR = cuda.recipes(params_BVP).to(crops_BVHWC.device)
        levels_CL = cuda.levels(IMAGENET_MEAN, IMAGENET_STD, dtype, crops_BVHWC.device)
        calls["cuda-kernel"] = lambda: cuda.augment_views(crops_BVHWC, recipes_BVR, levels_CL)
    return calls


def photo_like(batch: int, size: int, seed: int) -> Tensor:
    """Smooth colours with a little grain: crops_BVHWC, two views."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch * 2, 3, 8, 8, generator=random) * 320 - 32
    fine = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    fine += 5 * torch.randn(fine.shape, generator=random)
    return fine.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).reshape(batch, 2, size, size, 3)


def official_params(batch: int, seed: int) -> Tensor:
    """params_BVP by the official asymmetric recipe (facebookresearch/vicreg, augmentations.py)."""
    random = np.random.default_rng(seed)
    params = photometric_identity(batch, 2).numpy()
    for view, (blur, solarize) in enumerate(((1.0, 0.0), (0.1, 0.2))):
        for row in params[:, view]:
            if random.random() < 0.8:
                row[P.BRIGHTNESS], row[P.CONTRAST] = random.uniform(0.6, 1.4, 2)
                row[P.SATURATION], row[P.HUE] = random.uniform(0.8, 1.2), random.uniform(-0.1, 0.1)
                row[P.ORDER] = random.integers(len(JITTER_ORDERS))
            row[P.GRAYSCALE] = random.random() < 0.2
            row[P.BLUR_SIGMA] = random.uniform(0.1, 2) if random.random() < blur else 0
            row[P.SOLARIZE] = 128 if random.random() < solarize else 256
    return torch.from_numpy(params)


def pillow_view(image: np.ndarray, params_P: Tensor) -> np.ndarray:
    """One view (H, W, 3) uint8 as a DataLoader worker makes it: torchvision's functions on PIL images, written out."""
    values = dict(zip(P, params_P.tolist(), strict=True))
    picture = Image.fromarray(image)
    for operation in JITTER_ORDERS[int(values[P.ORDER])] if values[P.ORDER] >= 0 else ():
        if operation == 0:
            picture = ImageEnhance.Brightness(picture).enhance(values[P.BRIGHTNESS])
        elif operation == 1:
            picture = ImageEnhance.Contrast(picture).enhance(values[P.CONTRAST])
        elif operation == 2:
            picture = ImageEnhance.Color(picture).enhance(values[P.SATURATION])
        else:
            h, s, v = picture.convert("HSV").split()
            shifted = np.array(h) + np.uint8(int(values[P.HUE] * 255) % 256)  # wraps at 256, as torchvision's
            picture = Image.merge("HSV", (Image.fromarray(shifted), s, v)).convert("RGB")
    if values[P.GRAYSCALE]:
        picture = picture.convert("L").convert("RGB")
    if values[P.BLUR_SIGMA]:
        picture = picture.filter(ImageFilter.GaussianBlur(values[P.BLUR_SIGMA]))
    if values[P.SOLARIZE] < 256:
        picture = ImageOps.solarize(picture, values[P.SOLARIZE])
    return np.array(picture)


def _pillow_batch(crops_BVHWC: Tensor, params_BVP: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Every view through Pillow, ToTensor and Normalize, then stacked, as DataLoader's collation does."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    views = []
    for crops_BHWC, params_BP in zip(crops_BVHWC.unbind(1), params_BVP.unbind(1), strict=True):
        images = []
        for crop, params_P in zip(crops_BHWC, params_BP, strict=True):
            pixels = torch.from_numpy(pillow_view(crop.numpy(), params_P))
            images.append(pixels.permute(2, 0, 1).contiguous().float().div_(255).sub_(mean).div_(std))
        views.append(torch.stack(images).to(dtype))
    return views


def _errors(crops_BVHWC: Tensor, params_BVP: Tensor, impl: str) -> dict[str, float]:
    """Of the first samples."""
    crops_BVHWC, params_BVP = crops_BVHWC[:COMPARED], params_BVP[:COMPARED]
    options = {"mean": (0, 0, 0), "std": (1 / 255,) * 3, "dtype": torch.float32}
    if impl == "batched-torch":
        views = batched_torch(crops_BVHWC, params_BVP.to(crops_BVHWC.device), **options)
    else:
        views = augment(crops_BVHWC, params_BVP, impl=impl, **options)
    total, largest, count = 0.0, 0.0, 0
    for v, view_BCHW in enumerate(views):
        levels_BHWC = view_BCHW.permute(0, 2, 3, 1).round().cpu()
        for levels, crop, params_P in zip(levels_BHWC, crops_BVHWC[:, v].cpu(), params_BVP[:, v], strict=True):
            error = (levels - torch.from_numpy(pillow_view(crop.numpy(), params_P))).abs()
            total, largest, count = total + error.sum().item(), max(largest, error.max().item()), count + error.numel()
    return {"mean_error": total / count, "max_error": largest}


@dataclass(frozen=True)
class BenchOptions(DeviceOptions):
    """The photometric kernel."""

    size: int = 224
    """Side of a view in pixels."""


BENCHMARK = Benchmark(run, COLUMNS, key=("impl", "n", "d", "dtype", "device", "threads"), options=BenchOptions)
