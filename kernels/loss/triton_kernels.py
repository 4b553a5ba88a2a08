"""The loss's passes in Triton: what each program reads, sums and writes.

Shape suffixes: as in ``fused``; in a kernel, I by J is a program's tile, K the summed index.
"""

# Triton's language is typed by its own compiler: a kernel's values are blocks, whatever their annotation says.
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def statistics(
    za, zb, mean_2D, x_2MD, power_2D, distance_S, m, d, GIVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A strip of columns: means (of the distance to the first row), then the centred rows and their squares."""
    strip = tl.program_id(0)
    j = strip * COLUMNS + tl.arange(0, COLUMNS)
    i = tl.arange(0, ROWS)
    at = i[:, None] * d + j[None, :]
    inside_J = j < d
    if GIVEN:
        pivot_a = tl.load(mean_2D + j, mask=inside_J, other=0.0)
        pivot_b = tl.load(mean_2D + d + j, mask=inside_J, other=0.0)
        shift_a = tl.zeros([COLUMNS], tl.float32)
        shift_b = tl.zeros([COLUMNS], tl.float32)
    else:
        pivot_a = tl.load(za + j, mask=inside_J, other=0.0).to(tl.float32)
        pivot_b = tl.load(zb + j, mask=inside_J, other=0.0).to(tl.float32)
        sum_a = tl.zeros([ROWS, COLUMNS], tl.float32)
        sum_b = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, m, ROWS):
            inside = ((first + i) < m)[:, None] & inside_J[None, :]
            block = tl.cast(first, tl.int64) * d
            a = tl.load(za + block + at, mask=inside, other=0.0).to(tl.float32)
            b = tl.load(zb + block + at, mask=inside, other=0.0).to(tl.float32)
            sum_a += tl.where(inside, a - pivot_a[None, :], 0.0)
            sum_b += tl.where(inside, b - pivot_b[None, :], 0.0)
        shift_a = tl.sum(sum_a, 0) / m
        shift_b = tl.sum(sum_b, 0) / m

    square_a = tl.zeros([ROWS, COLUMNS], tl.float32)
    square_b = tl.zeros([ROWS, COLUMNS], tl.float32)
    distance = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, m, ROWS):
        inside = ((first + i) < m)[:, None] & inside_J[None, :]
        block = tl.cast(first, tl.int64) * d
        a = tl.load(za + block + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(zb + block + at, mask=inside, other=0.0).to(tl.float32)
        distance += (a - b) * (a - b)
        xa = ((a - pivot_a[None, :]) - shift_a[None, :]).to(x_2MD.dtype.element_ty)
        xb = ((b - pivot_b[None, :]) - shift_b[None, :]).to(x_2MD.dtype.element_ty)
        tl.store(x_2MD + block + at, xa, mask=inside)
        tl.store(x_2MD + tl.cast(m + first, tl.int64) * d + at, xb, mask=inside)
        square_a += tl.where(inside, xa.to(tl.float32) * xa.to(tl.float32), 0.0)
        square_b += tl.where(inside, xb.to(tl.float32) * xb.to(tl.float32), 0.0)
    tl.store(power_2D + j, tl.sum(square_a, 0), mask=inside_J)
    tl.store(power_2D + d + j, tl.sum(square_b, 0), mask=inside_J)
    tl.store(distance_S + strip, tl.sum(tl.sum(distance, 1), 0))


@triton.jit
def matrix(
    x_2MD,
    trace_2,
    product_2PQ,
    diagonal_2P,
    squares_2S,
    p,
    q,
    length,
    stride_i,
    stride_k,
    view_stride,
    first_row,
    samples_less_1,
    half_limit,
    least_trace,
    GRAM: tl.constexpr,
    TRIANGLE: tl.constexpr,
    RAW: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A tile of P and, of a symmetric one, its mirror image; RAW: P in fp32 with its diagonal, nothing else."""
    tile, view = tl.program_id(0), tl.program_id(1)
    if TRIANGLE:
        row = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) / 2.0).to(tl.int32)
        row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)  # the root may be off by one rounding
        row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
        column = tile - row * (row + 1) // 2
    else:
        row = tile // tl.cdiv(q, TILE)
        column = tile % tl.cdiv(q, TILE)
    t = tl.arange(0, TILE)
    i, j, k = row * TILE + t, column * TILE + t, tl.arange(0, DEPTH)
    x = x_2MD + view.to(tl.int64) * view_stride
    left = x + (first_row + row * TILE).to(tl.int64) * stride_i
    right = x + (column * TILE).to(tl.int64) * stride_i
    at_left, at_right = t[:, None] * stride_i + k[None, :] * stride_k, t[None, :] * stride_i + k[:, None] * stride_k
    sum_IJ = tl.zeros([TILE, TILE], tl.float32)
    for first in range(0, length, DEPTH):
        rest = first + k < length
        step = tl.cast(first, tl.int64) * stride_k
        a = tl.load(left + step + at_left, mask=(i < p)[:, None] & rest[None, :], other=0.0)
        b = tl.load(right + step + at_right, mask=(j < q)[None, :] & rest[:, None], other=0.0)
        sum_IJ = tl.dot(a, b, sum_IJ, input_precision=PRECISION)

    inside = (i < p)[:, None] & (j < q)[None, :]
    out = product_2PQ + view.to(tl.int64) * p * q + (row * TILE).to(tl.int64) * q + column * TILE
    image = product_2PQ + view.to(tl.int64) * p * q + (column * TILE).to(tl.int64) * q + row * TILE
    at = t[:, None] * q + t[None, :]
    mirrored = (j < q)[:, None] & (i < p)[None, :]
    if RAW:
        tl.store(out + at, sum_IJ, mask=inside)
        if TRIANGLE and row != column:
            tl.store(image + at, tl.trans(sum_IJ), mask=mirrored)
    else:
        on_diagonal = (first_row + i)[:, None] == j[None, :]
        off_IJ = tl.where(on_diagonal, 0.0, sum_IJ)
        element_IJ = (sum_IJ if GRAM else off_IJ) / samples_less_1
        squares = tl.sum(tl.sum(element_IJ * element_IJ, 1), 0)
        if TRIANGLE and row != column:
            squares = 2 * squares
        tl.store(squares_2S + view * tl.num_programs(0) + tile, squares)
        if GRAM:
            at_diagonal = tl.broadcast_to(view * p + i[:, None], [TILE, TILE])
            tl.store(diagonal_2P + at_diagonal, sum_IJ, mask=inside & on_diagonal)
        if HALF:
            off_IJ *= half_limit / tl.maximum(tl.load(trace_2 + view), least_trace)
        off_IJ = off_IJ.to(product_2PQ.dtype.element_ty)
        tl.store(out + at, off_IJ, mask=inside)
        if TRIANGLE and row != column:
            tl.store(image + at, tl.trans(off_IJ), mask=mirrored)


@triton.jit
def terms(
    power_2D,
    squares_2S,
    distance_S,
    slope_2D,
    total,
    invariance,
    variance,
    covariance,
    d,
    squares_count,
    distance_count,
    elements,
    samples_less_1,
    invariance_weight,
    variance_weight,
    covariance_weight,
    branch_share,
    gamma,
    eps,
    size,
    GRAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: every partial sum in its order, and the slopes of both views' columns."""
    at = tl.arange(0, BLOCK)
    sum_B = tl.zeros([BLOCK], tl.float32)
    for first in range(0, distance_count, BLOCK):
        sum_B += tl.load(distance_S + first + at, mask=first + at < distance_count, other=0.0)
    invariance_term = tl.sum(sum_B, 0) / elements
    variance_term = 0.0
    covariance_term = 0.0
    for view in tl.static_range(2):
        sum_B = tl.zeros([BLOCK], tl.float32)
        for first in range(0, squares_count, BLOCK):
            inside = first + at < squares_count
            sum_B += tl.load(squares_2S + view * squares_count + first + at, mask=inside, other=0.0)
        hinge_B = tl.zeros([BLOCK], tl.float32)
        own_B = tl.zeros([BLOCK], tl.float32)
        for first in range(0, d, BLOCK):
            inside = first + at < d
            var_B = tl.load(power_2D + view * d + first + at, mask=inside, other=0.0) / samples_less_1
            std_B = tl.sqrt(var_B + eps)
            below_B = gamma - std_B
            hinge_B += tl.where(inside, tl.where(below_B <= 0, 0.0, below_B), 0.0)  # a NaN passes, as torch's relu
            slope_B = tl.where(below_B > 0, -variance_weight * branch_share / (d * samples_less_1) / std_B, 0.0)
            if GRAM:
                own_B += var_B * var_B
                slope_B -= var_B * (4 * covariance_weight / (d * samples_less_1))
            tl.store(slope_2D + view * d + first + at, slope_B * size, mask=inside)
        variance_term += branch_share * (tl.sum(hinge_B, 0) / d)
        covariance_term += (tl.sum(sum_B, 0) - tl.sum(own_B, 0)) / d
    tl.store(invariance, invariance_term)
    tl.store(variance, variance_term)
    tl.store(covariance, covariance_term)
    weighted = invariance_weight * invariance_term + variance_weight * variance_term
    tl.store(total, weighted + covariance_weight * covariance_term)


@triton.jit(do_not_specialize_on_alignment=["trace"])
def gradient(
    scale,
    z_ND,
    other_ND,
    x_MD,
    product_PQ,
    diagonal_P,
    slope_D,
    trace,
    grad_ND,
    n,
    d,
    length,
    first_row,
    push,
    pull,
    half_limit,
    least_trace,
    GRAM: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_I: tl.constexpr,
    TILE_J: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A tile of one view's gradient: P X, and what else is proportional to X or to the views' difference."""
    # Tiles in groups of rows, so that neighbours in time share operands in the L2 cache.
    tiles_i, tiles_j = tl.cdiv(n, TILE_I), tl.cdiv(d, TILE_J)
    group = tl.program_id(0) // (GROUP * tiles_j)
    within = tl.program_id(0) % (GROUP * tiles_j)
    rows = tl.minimum(tiles_i - group * GROUP, GROUP)
    top, edge = (group * GROUP + within % rows) * TILE_I, (within // rows) * TILE_J
    ti, tj, k = tl.arange(0, TILE_I), tl.arange(0, TILE_J), tl.arange(0, DEPTH)
    i, j = top + ti, edge + tj
    left = (product_PQ if GRAM else x_MD) + top.to(tl.int64) * length
    right = (x_MD if GRAM else product_PQ) + edge
    at_left, at_right = ti[:, None] * length + k[None, :], k[:, None] * d + tj[None, :]
    sum_IJ = tl.zeros([TILE_I, TILE_J], tl.float32)
    for first in range(0, length, DEPTH):
        rest = first + k < length
        a = tl.load(left + first + at_left, mask=(i < n)[:, None] & rest[None, :], other=0.0)
        b = tl.load(right + tl.cast(first, tl.int64) * d + at_right, mask=(j < d)[None, :] & rest[:, None], other=0.0)
        sum_IJ = tl.dot(a, b, sum_IJ, input_precision=PRECISION)

    inside = (i < n)[:, None] & (j < d)[None, :]
    at = ti[:, None] * d + tj[None, :]
    own = top.to(tl.int64) * d + edge
    x_IJ = tl.load(x_MD + (first_row + top).to(tl.int64) * d + edge + at, mask=inside, other=0.0).to(tl.float32)
    z_IJ = tl.load(z_ND + own + at, mask=inside, other=0.0).to(tl.float32)
    other_IJ = tl.load(other_ND + own + at, mask=inside, other=0.0).to(tl.float32)
    factor_IJ = tl.load(slope_D + j, mask=j < d, other=0.0)[None, :]
    if GRAM:
        factor_IJ = factor_IJ + push * tl.load(diagonal_P + i, mask=i < n, other=0.0)[:, None]
    if HALF:
        push *= tl.maximum(tl.load(trace), least_trace) / half_limit
    value_IJ = push * sum_IJ + factor_IJ * x_IJ + pull * (z_IJ - other_IJ)
    tl.store(grad_ND + own + at, (tl.load(scale) * value_IJ).to(grad_ND.dtype.element_ty), mask=inside)
