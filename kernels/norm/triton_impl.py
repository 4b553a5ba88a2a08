"""The norm by Triton: the passes of ``fused`` launched on rows of channels, which a channels_last tensor is in memory.

Forward reads the input twice and writes the output, in three launches; backward reads input and gradient twice each
(with an addition: the output once, and the masked gradient in the place of the gradient) and writes the input's, in
three. To a compiler each pass is an operator; what lies between them, of C values, is torch's own then.

Shape suffixes: as in ``fused``.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, cast

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from fastvicreg.kernels import triton_host
from fastvicreg.kernels.loss import fused as loss
from fastvicreg.kernels.norm import fused, torch_passes, triton_kernels
from fastvicreg.kernels.norm.collectives import traced
from fastvicreg.kernels.norm.fused import Running, Statistics
from fastvicreg.kernels.norm.options import Options

ELEMENTS, WIDEST = 4096, 64
"""Elements of a program's tile, and its channels at most."""
STEPS = 4
"""Tiles of a program where nothing is summed."""
PROGRAMS, MOST_PARTS = 512, 256
"""Of a sum's first stage: enough to fill a GPU, few enough for a short second stage. The same on every device."""
SECOND = {"PARTS": 64, "COLUMNS": 16}
WARPS = 8
_launch = functools.partial(triton_host.launch, num_warps=WARPS)


def obstacle(device: str, dtype: torch.dtype) -> str:
    """Why these passes cannot run; "" where they can."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if isinstance(triton_kernels.normalise, InterpretedFunction):
        return ""
    return loss.obstacle(device, dtype) or triton_host.missing()


def tiles(c: int) -> dict[str, int]:
    """Rows and channels of a program's tile."""
    columns = min(WIDEST, triton.next_power_of_2(c))
    return {"ROWS": ELEMENTS // columns, "COLUMNS": columns}


def parts_of(m: int, c: int, views: int) -> tuple[int, int]:
    """(number of parts, rows of a part) of a sum over m rows of each view."""
    tile = tiles(c)
    across = triton.cdiv(c, tile["COLUMNS"]) * views
    most = max(1, min(MOST_PARTS, PROGRAMS // across))
    part = triton.cdiv(triton.cdiv(m, most), tile["ROWS"]) * tile["ROWS"]
    return triton.cdiv(m, part), part


def statistics(x: Tensor, views: int) -> Tensor:
    """See ``fused.Passes``."""
    return _statistics_operator(x, views) if traced(x) else _statistics(x, views)


def merged(parts_SX: Tensor, views: int) -> Tensor:
    """See ``fused.Passes``."""
    if traced(parts_SX):
        return torch_passes.merged(parts_SX, views)
    row_X = torch.empty_like(parts_SX[0])
    _merge(parts_SX, row_X, None, None, Options(views=views))
    return row_X


def finished(parts_SX: Tensor, options: Options, running: Running | None) -> Statistics:
    """See ``fused.Passes``."""
    if traced(parts_SX):
        return torch_passes.finished(parts_SX, options, running)
    c = parts_SX.shape[1] // (2 * options.views)
    mean_VC, scale_VC, unbiased_VC = (parts_SX.new_empty(options.views, c) for _ in range(3))
    found = Statistics(mean_VC, scale_VC, unbiased_VC, parts_SX.new_empty(1))
    _merge(parts_SX, None, found, running, options)
    return found


def normalised(
    x: Tensor, residual: Tensor | None, weight_C: Tensor, bias_C: Tensor, found: Statistics, options: Options
) -> Tensor:
    """See ``fused.Passes``."""
    run = _normalised_operator if traced(x) else _normalised
    return run(x, residual, weight_C, bias_C, found.mean_VC, found.scale_VC, options.relu)


def sums(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    found: Statistics,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """See ``fused.Passes``; the gradient comes masked where there was an addition."""
    run = _sums_operator if traced(x) else _sums
    sums_2VC, *masked = run(grad, x, y, weight_C, bias_C, found.mean_VC, found.scale_VC, options.relu)
    return sums_2VC, masked[0] if masked else grad


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
    run = _gradient_operator if traced(x) else _gradient
    again = options.relu and y is None
    return run(masked, x, weight_C, bias_C, found.mean_VC, found.scale_VC, sums_2VC, found.count_1, again)


def _statistics(x: Tensor, views: int) -> Tensor:
    x = _rows(x)
    m, c = _sizes(x, views)
    count, part = parts_of(m, c, views)
    parts_SX = x.new_empty(count, 1 + 2 * views * c, dtype=torch.float32)
    grid = (count, triton.cdiv(c, tiles(c)["COLUMNS"]), views)
    _launch(triton_kernels.statistics, grid, x, parts_SX, m, c, part, VIEWS=views, **tiles(c))
    return parts_SX


def _merge(
    parts_SX: Tensor, row_X: Tensor | None, found: Statistics | None, running: Running | None, options: Options
) -> None:
    c = parts_SX.shape[1] // (2 * options.views)
    _launch(
        triton_kernels.merge,
        (triton.cdiv(c, SECOND["COLUMNS"]),),
        *(parts_SX, parts_SX if row_X is None else row_X),
        *(found or (parts_SX,) * 4),
        *(running or (parts_SX, parts_SX)),
        *(len(parts_SX), c, options.momentum, options.eps),
        VIEWS=options.views,
        FINAL=found is not None,
        RUNNING=running is not None,
        **SECOND,
    )


def _normalised(
    x: Tensor,
    residual: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_VC: Tensor,
    scale_VC: Tensor,
    relu: bool,
) -> Tensor:
    x = _rows(x)
    views = len(mean_VC)
    m, c = _sizes(x, views)
    y = torch.empty_like(x)
    _launch(
        triton_kernels.normalise,
        _blocks(m, c, views),
        *(x, x if residual is None else _rows(residual), weight_C, bias_C, mean_VC, scale_VC, y, m, c),
        ADDED=residual is not None,
        RELU=relu,
        STEPS=STEPS,
        **tiles(c),
    )
    return y


def _sums(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_VC: Tensor,
    scale_VC: Tensor,
    relu: bool,
) -> list[Tensor]:
    grad, x = _rows(grad), _rows(x)
    views = len(mean_VC)
    m, c = _sizes(x, views)
    count, part = parts_of(m, c, views)
    parts_SY = x.new_empty(count, 2 * views * c, dtype=torch.float32)
    sums_2VC = x.new_empty(2, views, c, dtype=torch.float32)
    masked = [] if y is None else [torch.empty_like(grad)]
    _launch(
        triton_kernels.sums,
        (count, triton.cdiv(c, tiles(c)["COLUMNS"]), views),
        *(grad, x, x if y is None else _rows(y), weight_C, bias_C, mean_VC, scale_VC, *(masked or (grad,))),
        *(parts_SY, m, c, part),
        VIEWS=views,
        FROM_Y=y is not None,
        AGAIN=relu and y is None,
        **tiles(c),
    )
    width = 2 * views * c
    grid = (triton.cdiv(width, SECOND["COLUMNS"]),)
    _launch(triton_kernels.add, grid, parts_SY, sums_2VC, count, width, **SECOND)
    return [sums_2VC, *masked]


def _gradient(
    masked: Tensor,
    x: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_VC: Tensor,
    scale_VC: Tensor,
    sums_2VC: Tensor,
    count_1: Tensor,
    again: bool,
) -> Tensor:
    masked, x = _rows(masked), _rows(x)
    views = len(mean_VC)
    m, c = _sizes(x, views)
    grad = torch.empty_like(x)
    _launch(
        triton_kernels.gradient,
        _blocks(m, c, views),
        *(masked, x, weight_C, bias_C, mean_VC, scale_VC, sums_2VC, count_1, grad, m, c),
        VIEWS=views,
        AGAIN=again,
        STEPS=STEPS,
        **tiles(c),
    )
    return grad


def _rows(x: Tensor) -> Tensor:
    """``x``, copied unless it lies in memory as rows of channels."""
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous() if x.ndim == 2 else x.movedim(1, -1).contiguous().movedim(-1, 1)


def _sizes(x: Tensor, views: int) -> tuple[int, int]:
    """(rows of a view, channels)."""
    return x.numel() // (x.shape[1] * views), x.shape[1]


def _blocks(m: int, c: int, views: int) -> tuple[int, int, int]:
    tile = tiles(c)
    return triton.cdiv(m, tile["ROWS"] * STEPS), triton.cdiv(c, tile["COLUMNS"]), views


_statistics_operator = torch.library.custom_op("fastvicreg::norm_statistics", _statistics, mutates_args=())
_normalised_operator = torch.library.custom_op("fastvicreg::norm_normalised", _normalised, mutates_args=())
_sums_operator = torch.library.custom_op("fastvicreg::norm_sums", _sums, mutates_args=())
_gradient_operator = torch.library.custom_op("fastvicreg::norm_gradient", _gradient, mutates_args=())


@_statistics_operator.register_fake
def _(x: Tensor, views: int) -> Tensor:
    m, c = _sizes(x, views)
    return x.new_empty(parts_of(m, c, views)[0], 1 + 2 * views * c, dtype=torch.float32)


@_normalised_operator.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(_rows(x))


@_sums_operator.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor | None, weight_C: Tensor, bias_C: Tensor, mean_VC: Tensor, *_: Any) -> Any:
    sums_2VC = mean_VC.new_empty(2, *mean_VC.shape)
    return [sums_2VC] if y is None else [sums_2VC, torch.empty_like(_rows(grad))]


@_gradient_operator.register_fake
def _(masked: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(_rows(x))


PASSES = cast(fused.Passes, sys.modules[__name__])
batch_norm_act = functools.partial(fused.batch_norm_act, PASSES)
