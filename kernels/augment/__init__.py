"""Photometric augmentation and normalisation: uint8 crops and their parameters in, views for the encoder out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvicreg.contracts import JITTER_ORDERS, Photometric, UserError
from fastvicreg.kernels.dispatch import KERNELS

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "augment", "choose", "known"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RANGES = {
    Photometric.BRIGHTNESS: (0.0, float("inf")),
    Photometric.CONTRAST: (0.0, float("inf")),
    Photometric.SATURATION: (0.0, float("inf")),
    Photometric.HUE: (-0.5, 0.5),
    Photometric.ORDER: (-1, len(JITTER_ORDERS) - 1),
    Photometric.GRAYSCALE: (0, 1),
    Photometric.BLUR_SIGMA: (0.0, 100.0),
    Photometric.SOLARIZE: (0.0, 256.0),
}

choose, known = KERNELS["augment"].choose, KERNELS["augment"].known


def augment(
    crops_BVHWC: Tensor,
    params_BVP: Tensor,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
) -> tuple[Tensor, ...]:
    """Colour jitter, grayscale, Gaussian blur, solarization, (x / 255 - mean) / std, in the official recipe's order.

    Args:
        crops_BVHWC: uint8 RGB, any strides, on any device.
        params_BVP: float32, columns as in ``contracts.Photometric``. Best left on the host: which operations run is
            decided there, so parameters on a device cost one synchronisation.
        mean, std: per channel, in units where white is 1.
        dtype: of the views: float32, bfloat16 or float16. The arithmetic is the same for all.
        impl: "reference" (torch, any device), "numba" (CPU), "cuda" (sm_80 or later), or "auto": numba for crops on
            the host, on a GPU cuda where it can run, else reference.

    Returns:
        V views, each (B, C, H, W) in channels_last memory order, on the crops' device.

    Raises:
        UserError: for another shape, dtype or range than the above, or an ``impl`` that cannot run there; by "cuda"
            also for a blur wider than sigma 2.4.

    Every operation gives what Pillow and torchvision give on 8-bit images, intermediate rounding included
    (facebookresearch/vicreg, augmentations.py); a rounding at one half may differ by one level, rarely.
    "numba" uses ``torch.get_num_threads()`` threads and may be called from any thread. "cuda" gives the reference's
    bits, in one launch a batch, and does not wait for the device.
    """
    _check_crops(crops_BVHWC, mean, std, dtype)
    params_BVP = params_BVP.cpu()
    _check_params(params_BVP, tuple(crops_BVHWC.shape[:2]))
    run = choose(impl, crops_BVHWC.device.type, dtype).function()
    return run(crops_BVHWC, params_BVP, mean=mean, std=std, dtype=dtype)


def _check_crops(crops_BVHWC: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
    shape = tuple(crops_BVHWC.shape)
    if len(shape) != 5 or shape[-1] != 3 or 0 in shape or crops_BVHWC.dtype != torch.uint8:
        raise UserError(f"crops must be uint8 of shape (B, V, H, W, 3), none of them 0: {crops_BVHWC.dtype} {shape}")
    if dtype not in DTYPES:
        raise UserError(f"views cannot be {dtype}; choose from: {', '.join(map(str, DTYPES))}")
    if len(mean) != 3 or len(std) != 3 or not all(s > 0 for s in std):
        raise UserError(f"mean and std take three values each, std above 0: {tuple(mean)}, {tuple(std)}")


def _check_params(params_BVP: Tensor, leading: tuple[int, ...]) -> None:
    shape = (*leading, len(Photometric))
    if tuple(params_BVP.shape) != shape or params_BVP.dtype != torch.float32:
        raise UserError(f"params must be float32 of shape {shape}: {params_BVP.dtype} {tuple(params_BVP.shape)}")
    low_P, high_P = torch.tensor([RANGES[column] for column in Photometric]).unbind(1)
    bad = ~((params_BVP >= low_P) & (params_BVP <= high_P))  # also true where a value is not a number
    if bad.any():
        b, v, p = bad.nonzero()[0].tolist()
        low, high = RANGES[Photometric(p)]
        value = params_BVP[b, v, p].item()
        raise UserError(f"{Photometric(p).name} of sample {b}, view {v} is {value:g}, outside {low:g} to {high:g}")
