"""The four passes of ``fused`` by torch's operations, on any device and for any compiler.

Shape suffixes: as in ``fused``; B the images of one view.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvicreg.kernels.norm.fused import Running, Statistics, move
from fastvicreg.kernels.norm.options import Options


def statistics(x: Tensor, views: int) -> Tensor:
    """See ``fused.Passes``; one part."""
    wide = _by_view(x, views)
    var_VC, mean_VC = torch.var_mean(wide, _summed(wide), correction=0)
    count = wide.numel() // mean_VC.numel()
    return torch.cat((mean_VC.new_full((1,), count), mean_VC.flatten(), var_VC.flatten() * count)).unsqueeze(0)


def merged(parts_SX: Tensor, views: int) -> Tensor:
    """See ``fused.Passes``: Chan's formula."""
    if len(parts_SX) == 1:
        return parts_SX[0]
    count_S1, (mean_SY, m2_SY) = parts_SX[:, :1], parts_SX[:, 1:].chunk(2, dim=1)
    count_1 = count_S1.sum(0)
    mean_Y = (mean_SY * (count_S1 / count_1)).sum(0)
    m2_Y = (m2_SY + count_S1 * (mean_SY - mean_Y).square()).sum(0)
    return torch.cat((count_1, mean_Y, m2_Y))


def finished(parts_SX: Tensor, options: Options, running: Running | None) -> Statistics:
    """See ``fused.Passes``."""
    row_X = merged(parts_SX, options.views)
    count_1, (mean_VC, m2_VC) = row_X[:1], row_X[1:].view(2, options.views, -1)
    mean_VC, unbiased_VC = mean_VC.clone(), m2_VC / (count_1 - 1)
    if running is not None:
        move(running, mean_VC, unbiased_VC, options.momentum)
    return Statistics(mean_VC, torch.rsqrt(m2_VC / count_1 + options.eps), unbiased_VC, count_1.clone())


def normalised(
    x: Tensor, residual: Tensor | None, weight_C: Tensor, bias_C: Tensor, found: Statistics, options: Options
) -> Tensor:
    """See ``fused.Passes``."""
    wide = _affine(_by_view(x, options.views), weight_C, bias_C, found)
    if residual is not None:
        wide = wide + _by_view(residual, options.views)
    return (torch.relu(wide) if options.relu else wide).flatten(0, 1).to(x.dtype)


def sums(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    found: Statistics,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """See ``fused.Passes``; the gradient comes masked."""
    wide = _by_view(x, options.views)
    masked = grad
    if options.relu:
        output = y if y is not None else _affine(wide, weight_C, bias_C, found).flatten(0, 1).to(x.dtype)
        masked = torch.where(output > 0, grad, 0.0)
    part = _by_view(masked, options.views)
    hat = (wide - _as(found.mean_VC, wide)) * _as(found.scale_VC, wide)
    axes = _summed(wide)
    return torch.stack((part.sum(axes), (part * hat).sum(axes))), masked


def gradient(
    masked: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    found: Statistics,
    sums_2VC: Tensor,
    options: Options,
) -> Tensor:
    """See ``fused.Passes``."""
    wide, part = _by_view(x, options.views), _by_view(masked, options.views)
    hat = (wide - _as(found.mean_VC, wide)) * _as(found.scale_VC, wide)
    mean_2VC = sums_2VC / found.count_1
    rest = part - _as(mean_2VC[0], wide) - hat * _as(mean_2VC[1], wide)
    return (rest * _as(found.scale_VC * weight_C, wide)).flatten(0, 1).to(x.dtype)


def _affine(wide: Tensor, weight_C: Tensor, bias_C: Tensor, found: Statistics) -> Tensor:
    centred = wide - _as(found.mean_VC, wide)
    return centred * _as(found.scale_VC * weight_C, wide) + _as(bias_C.to(wide.dtype).unsqueeze(0), wide)


def _by_view(x: Tensor, views: int) -> Tensor:
    """(V, B, C, ...) in fp32 (fp64 of fp64)."""
    return x.unflatten(0, (views, -1)).to(torch.promote_types(x.dtype, torch.float32))


def _summed(wide: Tensor) -> tuple[int, ...]:
    return (1, *range(3, wide.ndim))


def _as(value_VC: Tensor, wide: Tensor) -> Tensor:
    """(V, C) to be broadcast over images and pixels."""
    return value_VC.view(value_VC.shape[0], 1, -1, *(1,) * (wide.ndim - 3))
