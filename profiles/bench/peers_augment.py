"""What others would run on a GPU: the photometric recipe as batched torch operations, as kornia and torchvision v2 do.

Float images from 0 to 1, planar; a sample that does not ask for an operation keeps its pixels by a mask. The jitter
has one order for the batch, and the blur is a true Gaussian with a kernel a sample: less work than the recipe's own
definition, the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.contracts import Photometric

TAPS = 13
LUMA = (0.299, 0.587, 0.114)


def batched_torch(
    crops_BVHWC: Tensor, params_BVP: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> list[Tensor]:
    """Every view as (B, C, H, W) in channels_last, in ``dtype``; parameters on the crops' device."""
    mean_C11, std_C11 = (torch.tensor(values, device=crops_BVHWC.device)[:, None, None] for values in (mean, std))
    views = []
    for crops_BHWC, params_BP in zip(crops_BVHWC.unbind(1), params_BVP.unbind(1), strict=True):
        x_BCHW = photometric(crops_BHWC.permute(0, 3, 1, 2).contiguous().float() / 255, params_BP)
        view_BCHW = ((x_BCHW - mean_C11) / std_C11).to(dtype)
        views.append(view_BCHW.contiguous(memory_format=torch.channels_last))
    return views


def photometric(x_BCHW: Tensor, params_BP: Tensor) -> Tensor:
    """Jitter, grayscale, blur and solarization of floats from 0 to 1."""
    column = {name: params_BP[:, name, None, None, None] for name in Photometric}

    def jitter(x_BCHW: Tensor) -> Tensor:
        x_BCHW = (x_BCHW * column[Photometric.BRIGHTNESS]).clamp(0, 1)
        mean_B111 = gray(x_BCHW).mean((2, 3), keepdim=True)
        x_BCHW = mixed(mean_B111, x_BCHW, column[Photometric.CONTRAST])
        x_BCHW = mixed(gray(x_BCHW), x_BCHW, column[Photometric.SATURATION])
        return shift_hue(x_BCHW, column[Photometric.HUE])

    threshold_B111 = column[Photometric.SOLARIZE] / 255
    steps: tuple[tuple[Tensor, Callable[[Tensor], Tensor]], ...] = (
        (column[Photometric.ORDER] >= 0, jitter),
        (column[Photometric.GRAYSCALE] > 0, lambda x: gray(x).expand_as(x)),
        (column[Photometric.BLUR_SIGMA] > 0, lambda x: gaussian_blur(x, params_BP[:, Photometric.BLUR_SIGMA])),
        (threshold_B111 <= 1, lambda x: torch.where(x >= threshold_B111, 1 - x, x)),
    )
    for chosen_B111, operation in steps:
        x_BCHW = torch.where(chosen_B111, operation(x_BCHW), x_BCHW)
    return x_BCHW


def gray(x_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W)."""
    r, g, b = x_BCHW.unbind(1)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b)[:, None]


def mixed(degenerate: Tensor, x_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """``torchvision.transforms.v2.functional``'s blend."""
    return (factor_B111 * x_BCHW + (1 - factor_B111) * degenerate).clamp(0, 1)


def shift_hue(x_BCHW: Tensor, turns_B111: Tensor) -> Tensor:
    """To HSV, a turn of the hue, and back, by the usual six sectors."""
    r, g, b = x_BCHW.unbind(1)
    value, least = x_BCHW.amax(1), x_BCHW.amin(1)
    chroma = value - least
    span = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        value == r, (g - b) / span % 6, torch.where(value == g, (b - r) / span + 2, (r - g) / span + 4)
    )
    sixths = (sixths + 6 * turns_B111[:, 0]) % 6
    channels = []
    for offset in (5, 3, 1):
        k = (offset + sixths) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def gaussian_blur(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Separable, ``TAPS`` wide, edges repeated, one kernel a sample: a grouped convolution along each axis."""
    B, C, H, W = x_BCHW.shape
    distance_K = torch.arange(TAPS, device=x_BCHW.device) - TAPS // 2
    weight_BK = torch.exp(-0.5 * (distance_K / sigma_B[:, None].clamp(min=1e-3)) ** 2)
    weight_BK = weight_BK / weight_BK.sum(1, keepdim=True)
    weight_NK = weight_BK.repeat_interleave(C, 0)
    planes = F.pad(x_BCHW, (TAPS // 2,) * 4, mode="replicate").view(1, B * C, H + TAPS - 1, W + TAPS - 1)
    planes = F.conv2d(planes, weight_NK[:, None, None, :], groups=B * C)
    return F.conv2d(planes, weight_NK[:, None, :, None], groups=B * C).view(B, C, H, W)
