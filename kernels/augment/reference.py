"""The definition of the photometric operations: Pillow's arithmetic on 8-bit pixels, in torch, on any device.

Between operations pixels are float32 tensors that hold whole numbers from 0 to 255, because Pillow stores bytes
there; the tensors are (B, 3, H, W) with any strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastvicreg.contracts import JITTER_ORDERS, Photometric

JITTER = (Photometric.BRIGHTNESS, Photometric.CONTRAST, Photometric.SATURATION, Photometric.HUE)  # as in JITTER_ORDERS
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # ITU-R 601, in the 16-bit fixed point of Pillow's Convert.c


def augment(
    crops_BVHWC: Tensor, params_BVP: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """As ``fastvicreg.kernels.augment.augment``, which checks the arguments; ``params_BVP`` is on the host."""
    views = []
    for crops_BHWC, params_BP in zip(crops_BVHWC.unbind(1), params_BVP.unbind(1), strict=True):
        x_BCHW = crops_BHWC.permute(0, 3, 1, 2).to(torch.float32, copy=True)
        photometric_(x_BCHW, params_BP)
        view_BCHW = normalize(x_BCHW, mean, std).to(dtype)
        views.append(view_BCHW.contiguous(memory_format=torch.channels_last))
    return tuple(views)


def photometric_(x_BCHW: Tensor, params_BP: Tensor) -> None:
    """The operations of one view in the official order, in place; each touches only the samples that ask for it."""
    values = (params_BP[:, column] for column in JITTER[:3])
    jitter = tuple(zip((brightness, contrast, saturation), values, strict=True))
    jitter = (*jitter, (hue, hue_bytes(params_BP[:, Photometric.HUE])))
    for turn_B in jitter_turns(params_BP[:, Photometric.ORDER]).unbind(1):
        for number, (operation, value_B) in enumerate(jitter):
            _apply_(operation, x_BCHW, value_B, turn_B == number)
    gray_B, sigma_B = params_BP[:, Photometric.GRAYSCALE], params_BP[:, Photometric.BLUR_SIGMA]
    threshold_B = params_BP[:, Photometric.SOLARIZE]
    _apply_(grayscale, x_BCHW, gray_B, gray_B > 0)
    _apply_(gaussian_blur, x_BCHW, blur_taps(sigma_B), sigma_B > 0)
    _apply_(solarize, x_BCHW, threshold_B, threshold_B < 256)


def _apply_(operation: Callable[[Tensor, Tensor], Tensor], x_BCHW: Tensor, values: Tensor, chosen_B: Tensor) -> None:
    index = chosen_B.nonzero().flatten()  # on the host, so that the device is not waited for
    if len(index):
        rows = index.to(x_BCHW.device, non_blocking=True)
        values = values[index].to(x_BCHW.device, non_blocking=True)
        x_BCHW[rows] = operation(x_BCHW[rows], values[..., None, None, None])


def jitter_turns(order_B: Tensor) -> Tensor:
    """Indices into JITTER_ORDERS to the operations themselves: turns_B4, int64, -1 for none."""
    return torch.tensor([(-1,) * 4, *JITTER_ORDERS])[order_B.long() + 1]


def luma(x_BCHW: Tensor) -> Tensor:
    """Pillow's mode "L" of RGB, (B, 1, H, W); float32 holds every intermediate exactly (all below 2**24 / 65536)."""
    r, g, b = x_BCHW.unbind(1)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b + 0.5).floor()[:, None]


def blend(degenerate: Tensor | float, x_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """Pillow's ``Image.blend``: towards ``degenerate`` below 1, away from it above; clipped, fractions dropped."""
    return (degenerate + factor_B111 * (x_BCHW - degenerate)).clamp(0, 255).floor()


def brightness(x_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """``ImageEnhance.Brightness``: blend with black."""
    return blend(0.0, x_BCHW, factor_B111)


def contrast(x_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """``ImageEnhance.Contrast``: blend with the image's mean luma, rounded."""
    pixels = x_BCHW.shape[2] * x_BCHW.shape[3]
    # Whole sums: the mean must not fall on the other side of one half by the order of summation.
    total_B = luma(x_BCHW).to(torch.int32).sum((1, 2, 3))
    mean_B111 = (2 * total_B + pixels).div(2 * pixels, rounding_mode="floor")[:, None, None, None]
    return blend(mean_B111.to(x_BCHW.dtype), x_BCHW, factor_B111)


def saturation(x_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """``ImageEnhance.Color``: blend with the luma."""
    return blend(luma(x_BCHW), x_BCHW, factor_B111)


def hue(x_BCHW: Tensor, shift_B111: Tensor) -> Tensor:
    """torchvision's ``adjust_hue`` on PIL images: the byte H of Pillow's HSV plus ``hue_bytes``, wrapped at 256.

    H is floored in Pillow, so its roundings decide wherever a quotient is whole, as it often is in clipped colours:
    they are repeated here. Of all 2**24 colours a handful differ, by one level.
    """
    r, g, b = x_BCHW.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    least = torch.minimum(torch.minimum(r, g), b)
    chroma = value - least
    # Of the two quotients that Pillow subtracts, the least channel's is 1.
    share = (value - (r + g + b - value - least)) / chroma.clamp(min=1)
    sector = torch.where(r == value, 0.0, torch.where(g == value, 2.0, 4.0))
    past = torch.where(r == value, g - b, torch.where(g == value, b - r, r - g))
    turn = torch.where(past < 0, sector - 1 + share, sector + 1 - share) / 6
    turn = torch.where(turn < 0, turn + 1, turn)
    h = (turn * 255).floor()
    h = torch.where(256 * turn - h < turn, h - 1, h)  # the product was rounded up to a whole: 256 x - h is exact
    h = (h + shift_B111[:, 0]).remainder(256) * (6 / 255)
    vs = value * ((chroma * 255 / value.clamp(min=1)).floor() * (1 / 255))
    # How far each channel falls from the value towards it less the chroma: a trapezoid over the six sectors.
    falls = (2 - (h - 3).abs(), (h - 2).abs() - 1, (h - 4).abs() - 1)
    return torch.stack([(value + 0.5 - vs * fall.clamp(0, 1)).floor() for fall in falls], 1)


def hue_bytes(turns_B: Tensor) -> Tensor:
    """A shift of hue in turns as torchvision adds it to H: fractions dropped, negative ones from above; float32."""
    return (turns_B.double() * 255).trunc().remainder(256).float()


def grayscale(x_BCHW: Tensor, _: Tensor) -> Tensor:
    """Luma on all three channels."""
    return luma(x_BCHW).expand_as(x_BCHW)


def gaussian_blur(x_BCHW: Tensor, taps_BK111: Tensor) -> Tensor:
    """``ImageFilter.GaussianBlur``: three extended boxes along each axis, edges repeated, rounded after each."""
    reach = taps_BK111.shape[1] // 2
    pixels = x_BCHW.to(torch.int32)
    for axis in (3, 2):
        size = pixels.shape[axis]
        source_S = torch.arange(-reach, size + reach, device=pixels.device).clamp(0, size - 1)
        for _ in range(3):
            padded = pixels.index_select(axis, source_S)
            total = torch.full_like(pixels, 1 << 23)
            for k, tap_B111 in enumerate(taps_BK111.unbind(1)):
                total += padded.narrow(axis, k, size) * tap_B111
            pixels = (total >> 24) & 255  # the sum fills all 32 bits: its sign is its top bit
    return pixels.to(x_BCHW.dtype)


def blur_taps(sigma_B: Tensor) -> Tensor:
    """The box of each sample as taps_BK, int32, in units of 2**-24; K covers the widest."""
    radius_B, inner_B, outer_B = (part_B[:, None] for part_B in extended_boxes(sigma_B))
    reach = int(radius_B.max()) + 1
    distance_K = torch.arange(-reach, reach + 1).abs()
    return torch.where(distance_K <= radius_B, inner_B, torch.where(distance_K == radius_B + 1, outer_B, 0))


def extended_boxes(sigma_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Radius, weight of the 2 radius + 1 inner taps and weight of the two outer ones; int32, on the host.

    Three such boxes have variance sigma**2 (Gwosdek et al., SSVM 2011). Weights are in units of 2**-24 and rounded as
    in Pillow's BoxBlur.c, in float32: at sigma 1 a third of the sums lie at one half, and the weights' last bit
    decides each of them.
    """
    variance_N = sigma_N.float() * sigma_N.float() / 3
    radius_N = ((torch.sqrt(12 * variance_N + 1) - 1) / 2).floor()
    next_N = radius_N + 1
    fraction_N = (2 * radius_N + 1) * (radius_N * next_N - 3 * variance_N) / (6 * (variance_N - next_N * next_N))
    inner_N = (2**24 / ((radius_N + fraction_N) * 2 + 1)).to(torch.int32)
    radius_N = radius_N.to(torch.int32)
    return radius_N, inner_N, (2**24 - (2 * radius_N + 1) * inner_N) // 2


def solarize(x_BCHW: Tensor, threshold_B111: Tensor) -> Tensor:
    """``ImageOps.solarize``: pixels at or above the threshold inverted."""
    return torch.where(x_BCHW < threshold_B111, x_BCHW, 255 - x_BCHW)


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std over channels in dimension 1."""
    channels = (1, -1) + (1,) * (x.ndim - 2)
    mean_1C, std_1C = (torch.tensor(v, dtype=torch.float32, device=x.device).view(channels) for v in (mean, std))
    return (x / 255 - mean_1C) / std_1C
