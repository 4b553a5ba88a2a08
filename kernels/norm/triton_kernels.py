"""The norm's passes in Triton: what each program reads, sums and writes.

The input lies in memory as rows of C channels, m rows a view. A sum is taken in two stages in a fixed order, without
atomics, so that a run repeats bit by bit. Arithmetic is in fp32.

Shape suffixes: as in ``fused``; in a kernel, I by J is a program's tile of rows and channels.
"""

# Triton's language is typed by its own compiler: a kernel's values are blocks, whatever their annotation says.
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def statistics(x, parts_SX, m, c, part, VIEWS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A part of a view's rows, a tile of channels: Welford's mean and squared distances a lane, then of all lanes."""
    s, tile, view = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i, j = tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    first, last = s * part, tl.minimum(s * part + part, m)
    base = x + view.to(tl.int64) * m * c
    at = i[:, None] * c + j[None, :]
    inside_J = j < c
    count_I = tl.zeros([ROWS], tl.float32)
    mean_IJ = tl.zeros([ROWS, COLUMNS], tl.float32)
    m2_IJ = tl.zeros([ROWS, COLUMNS], tl.float32)
    for row in range(first, last, ROWS):
        inside_I = row + i < last
        inside = inside_I[:, None] & inside_J[None, :]
        value = tl.load(base + tl.cast(row, tl.int64) * c + at, mask=inside, other=0.0).to(tl.float32)
        count_I += inside_I.to(tl.float32)
        distance = tl.where(inside, value - mean_IJ, 0.0)
        mean_IJ += distance * (1.0 / tl.maximum(count_I, 1.0))[:, None]
        m2_IJ += distance * tl.where(inside, value - mean_IJ, 0.0)
    count = tl.sum(count_I, 0)
    mean_J = tl.sum(mean_IJ * count_I[:, None], 0) / count
    apart = mean_IJ - mean_J[None, :]
    m2_J = tl.sum(m2_IJ, 0) + tl.sum(apart * apart * count_I[:, None], 0)
    out = parts_SX + s.to(tl.int64) * (1 + 2 * VIEWS * c)
    tl.store(out + 1 + view * c + j, mean_J, mask=inside_J)
    tl.store(out + 1 + (VIEWS + view) * c + j, m2_J, mask=inside_J)
    if tile == 0 and view == 0:
        tl.store(out, count)


@triton.jit
def merge(
    parts_SX,
    row_X,
    mean_VC,
    scale_VC,
    unbiased_VC,
    count_1,
    running_mean_C,
    running_var_C,
    parts,
    c,
    momentum,
    eps,
    VIEWS: tl.constexpr,
    FINAL: tl.constexpr,
    RUNNING: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of channels: all parts as one row; FINAL: as the statistics that the other passes read."""
    tile = tl.program_id(0)
    s, j = tl.arange(0, PARTS), tile * COLUMNS + tl.arange(0, COLUMNS)
    inside_J = j < c
    width = 1 + 2 * VIEWS * c
    count_S = tl.zeros([PARTS], tl.float32)
    for first in range(0, parts, PARTS):
        count_S += tl.load(parts_SX + (first + s) * width, mask=first + s < parts, other=0.0)
    count = tl.sum(count_S, 0)
    if RUNNING:
        running_mean_J = tl.load(running_mean_C + j, mask=inside_J, other=0.0).to(tl.float32)
        running_var_J = tl.load(running_var_C + j, mask=inside_J, other=0.0).to(tl.float32)
    for view in tl.static_range(VIEWS):
        sum_SJ = tl.zeros([PARTS, COLUMNS], tl.float32)
        for first in range(0, parts, PARTS):
            row = parts_SX + (first + s) * width
            inside = (first + s < parts)[:, None] & inside_J[None, :]
            share = tl.load(row, mask=first + s < parts, other=0.0) / count
            sum_SJ += tl.load(row[:, None] + 1 + view * c + j[None, :], mask=inside, other=0.0) * share[:, None]
        mean_J = tl.sum(sum_SJ, 0)
        sum_SJ = tl.zeros([PARTS, COLUMNS], tl.float32)
        for first in range(0, parts, PARTS):
            row = parts_SX + (first + s) * width
            inside = (first + s < parts)[:, None] & inside_J[None, :]
            own = tl.load(row, mask=first + s < parts, other=0.0)
            apart = tl.load(row[:, None] + 1 + view * c + j[None, :], mask=inside, other=0.0) - mean_J[None, :]
            sum_SJ += tl.load(row[:, None] + 1 + (VIEWS + view) * c + j[None, :], mask=inside, other=0.0)
            sum_SJ += apart * apart * own[:, None]
        m2_J = tl.sum(sum_SJ, 0)
        if FINAL:
            unbiased_J = m2_J / (count - 1)
            tl.store(mean_VC + view * c + j, mean_J, mask=inside_J)
            tl.store(scale_VC + view * c + j, 1.0 / tl.sqrt(m2_J / count + eps), mask=inside_J)
            tl.store(unbiased_VC + view * c + j, unbiased_J, mask=inside_J)
            if RUNNING:
                running_mean_J += momentum * (mean_J - running_mean_J)
                running_var_J += momentum * (unbiased_J - running_var_J)
        else:
            tl.store(row_X + 1 + view * c + j, mean_J, mask=inside_J)
            tl.store(row_X + 1 + (VIEWS + view) * c + j, m2_J, mask=inside_J)
    if FINAL and RUNNING:
        tl.store(running_mean_C + j, running_mean_J.to(running_mean_C.dtype.element_ty), mask=inside_J)
        tl.store(running_var_C + j, running_var_J.to(running_var_C.dtype.element_ty), mask=inside_J)
    if tile == 0:
        tl.store(count_1 if FINAL else row_X, count)


@triton.jit
def normalise(
    x,
    residual,
    weight_C,
    bias_C,
    mean_VC,
    scale_VC,
    y,
    m,
    c,
    ADDED: tl.constexpr,
    RELU: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """STEPS blocks of rows, a tile of channels: relu((x - mean) scale weight + bias + residual)."""
    tile, view = tl.program_id(1), tl.program_id(2)
    i, j = tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    inside_J = j < c
    mean_J = tl.load(mean_VC + view * c + j, mask=inside_J, other=0.0)
    factor_J = tl.load(scale_VC + view * c + j, mask=inside_J, other=0.0)
    factor_J *= tl.load(weight_C + j, mask=inside_J, other=0.0).to(tl.float32)
    bias_J = tl.load(bias_C + j, mask=inside_J, other=0.0).to(tl.float32)
    base = view.to(tl.int64) * m * c
    for step in tl.static_range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * ROWS
        inside = (row + i < m)[:, None] & inside_J[None, :]
        at = base + row.to(tl.int64) * c + (i[:, None] * c + j[None, :])
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        value = (value - mean_J[None, :]) * factor_J[None, :] + bias_J[None, :]
        if ADDED:
            value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            value = tl.where(value <= 0, 0.0, value)  # a NaN passes, as torch's relu
        tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sums(
    grad,
    x,
    y,
    weight_C,
    bias_C,
    mean_VC,
    scale_VC,
    masked,
    parts_SY,
    m,
    c,
    part,
    VIEWS: tl.constexpr,
    FROM_Y: tl.constexpr,
    AGAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A part of a view's rows, a tile of channels: sums of the masked gradient and of its product with the normalised.

    FROM_Y: ReLU's mask is y's sign, and the masked gradient is written; AGAIN: the output is computed for it.
    """
    s, tile, view = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i, j = tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    inside_J = j < c
    first, last = s * part, tl.minimum(s * part + part, m)
    mean_J = tl.load(mean_VC + view * c + j, mask=inside_J, other=0.0)
    scale_J = tl.load(scale_VC + view * c + j, mask=inside_J, other=0.0)
    factor_J = scale_J
    bias_J = scale_J
    if AGAIN:
        factor_J *= tl.load(weight_C + j, mask=inside_J, other=0.0).to(tl.float32)
        bias_J = tl.load(bias_C + j, mask=inside_J, other=0.0).to(tl.float32)
    sum_IJ = tl.zeros([ROWS, COLUMNS], tl.float32)
    product_IJ = tl.zeros([ROWS, COLUMNS], tl.float32)
    base = view.to(tl.int64) * m * c
    for row in range(first, last, ROWS):
        inside = (row + i < last)[:, None] & inside_J[None, :]
        at = base + tl.cast(row, tl.int64) * c + (i[:, None] * c + j[None, :])
        g = tl.load(grad + at, mask=inside, other=0.0)
        centred = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean_J[None, :]
        if FROM_Y:
            g = tl.where(tl.load(y + at, mask=inside, other=0.0).to(tl.float32) > 0, g, 0.0).to(masked.dtype.element_ty)
            tl.store(masked + at, g, mask=inside)
        if AGAIN:
            value = (centred * factor_J[None, :] + bias_J[None, :]).to(grad.dtype.element_ty)
            g = tl.where(value.to(tl.float32) > 0, g, 0.0)
        g = g.to(tl.float32)
        sum_IJ += g
        product_IJ += tl.where(inside, g * (centred * scale_J[None, :]), 0.0)
    out = parts_SY + s.to(tl.int64) * (2 * VIEWS * c)
    tl.store(out + view * c + j, tl.sum(sum_IJ, 0), mask=inside_J)
    tl.store(out + (VIEWS + view) * c + j, tl.sum(product_IJ, 0), mask=inside_J)


@triton.jit
def add(parts_SY, sum_Y, parts, width, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of columns: the sum of all parts."""
    s, j = tl.arange(0, PARTS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sum_SJ = tl.zeros([PARTS, COLUMNS], tl.float32)
    for first in range(0, parts, PARTS):
        inside = (first + s < parts)[:, None] & (j < width)[None, :]
        sum_SJ += tl.load(parts_SY + (first + s)[:, None] * width + j[None, :], mask=inside, other=0.0)
    tl.store(sum_Y + j, tl.sum(sum_SJ, 0), mask=j < width)


@triton.jit
def gradient(
    masked,
    x,
    weight_C,
    bias_C,
    mean_VC,
    scale_VC,
    sums_2VC,
    count_1,
    grad,
    m,
    c,
    VIEWS: tl.constexpr,
    AGAIN: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """STEPS blocks of rows, a tile of channels: the input's gradient; AGAIN: the gradient comes without its mask."""
    tile, view = tl.program_id(1), tl.program_id(2)
    i, j = tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    inside_J = j < c
    count = tl.load(count_1)
    mean_J = tl.load(mean_VC + view * c + j, mask=inside_J, other=0.0)
    scale_J = tl.load(scale_VC + view * c + j, mask=inside_J, other=0.0)
    factor_J = scale_J * tl.load(weight_C + j, mask=inside_J, other=0.0).to(tl.float32)
    bias_J = tl.load(bias_C + j, mask=inside_J, other=0.0).to(tl.float32)
    share_J = tl.load(sums_2VC + view * c + j, mask=inside_J, other=0.0) / count
    slope_J = scale_J * tl.load(sums_2VC + (VIEWS + view) * c + j, mask=inside_J, other=0.0) / count
    base = view.to(tl.int64) * m * c
    for step in tl.static_range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * ROWS
        inside = (row + i < m)[:, None] & inside_J[None, :]
        at = base + row.to(tl.int64) * c + (i[:, None] * c + j[None, :])
        g = tl.load(masked + at, mask=inside, other=0.0)
        centred = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean_J[None, :]
        if AGAIN:
            value = (centred * factor_J[None, :] + bias_J[None, :]).to(masked.dtype.element_ty)
            g = tl.where(value.to(tl.float32) > 0, g, 0.0)
        value = (g.to(tl.float32) - share_J[None, :] - centred * slope_J[None, :]) * factor_J[None, :]
        tl.store(grad + at, value.to(grad.dtype.element_ty), mask=inside)
