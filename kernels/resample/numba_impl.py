"""The separable bicubic resampler on vector registers: equal to ``reference`` bit for bit, one compiled call an image.

Both passes are one operation, a weighted sum of byte vectors. Along columns the vectors lie in memory already; along
rows a block of rows is transposed first, so that a vector holds one byte column of all of them. The vectors are
written out as LLVM IR, which every target lowers to what it has (AVX-512, AVX2, NEON).

Everything compiled is in this file because numba's cache notices a change only in the file of the function it holds.

Shape suffixes: V views, S outputs along an axis, T taps, A axes (x, y); "at" is an index into a flat array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastvicreg.caches import njit
from fastvicreg.kernels.resample.windows import IN_SIZE, OFFSET, OUT_FIRST, OUT_SIZE

CHANNELS = 3
ROWS = 32  # rows transposed together
LANES = CHANNELS * ROWS  # bytes that one weighted sum gives
TILE = 16  # side of the square that is transposed in registers
PRECISION_BITS = 32 - 8 - 2  # Pillow's fixed point: 8 bits of pixel, 2 of overflow and sign
HALF = 1 << (PRECISION_BITS - 1)

Bytes = np.ndarray  # flat, uint8
Coefficients = tuple[np.ndarray, np.ndarray, np.ndarray]  # first_S, taps_S, weight_ST

_AT = types.intp
_BYTE, _WORD = ir.IntType(8), ir.IntType(32)
_BYTES, _WORDS = ir.VectorType(_BYTE, TILE), ir.VectorType(_WORD, TILE)


def _primitive(function: Callable[..., Any]) -> Any:
    """``intrinsic``; untyped, because callers do not pass the first argument, the typing context."""
    return intrinsic(function)


def _element(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, index: Any) -> Any:
    """Pointer to ``array[index]`` of a flat array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _vector(builder: ir.IRBuilder, pointer: Any, offset: int | Any) -> Any:
    """Pointer to TILE bytes, ``offset`` bytes on."""
    offset = ir.Constant(ir.IntType(64), offset) if isinstance(offset, int) else offset
    return builder.bitcast(builder.gep(pointer, [offset]), _BYTES.as_pointer())


def _all(value: int) -> ir.Constant:
    return ir.Constant(_WORDS, [value] * TILE)


@_primitive
def _weighted_sum(_: Any, dst: Any, dst_at: Any, src: Any, src_at: Any, stride: Any, weight: Any, w_at: Any, n: Any):
    """dst[dst_at + l] = clip8(sum over t < n of weight[w_at + t] * src[src_at + t * stride + l]) for l < LANES."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        dst, dst_at, src, src_at, stride, weight, w_at, n = args
        source = _element(context, builder, signature.args[2], src, src_at)
        weights = _element(context, builder, signature.args[5], weight, w_at)
        target = _element(context, builder, signature.args[0], dst, dst_at)
        sums = [cgutils.alloca_once_value(builder, _all(HALF)) for _ in range(LANES // TILE)]
        with cgutils.for_range(builder, n) as loop:
            first = builder.insert_element(_all(0), builder.load(builder.gep(weights, [loop.index])), _WORD(0))
            factor = builder.shuffle_vector(first, first, _all(0))
            row = builder.gep(source, [builder.mul(loop.index, stride)])
            for i, total in enumerate(sums):
                pixels = builder.zext(builder.load(_vector(builder, row, i * TILE), align=1), _WORDS)
                builder.store(builder.add(builder.load(total), builder.mul(pixels, factor)), total)
        for i, total in enumerate(sums):
            value = builder.ashr(builder.load(total), _all(PRECISION_BITS))
            value = builder.select(builder.icmp_signed(">", value, _all(0)), value, _all(0))
            value = builder.select(builder.icmp_signed("<", value, _all(255)), value, _all(255))
            builder.store(builder.trunc(value, _BYTES), _vector(builder, target, i * TILE), align=1)
        return context.get_dummy_value()

    return types.void(dst, _AT, src, _AT, _AT, weight, _AT, _AT), generate


@_primitive
def _transpose_tile(_: Any, dst: Any, dst_at: Any, dst_stride: Any, src: Any, src_at: Any, src_stride: Any):
    """dst[dst_at + i * dst_stride + j] = src[src_at + j * src_stride + i] for i, j < TILE."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        dst, dst_at, dst_stride, src, src_at, src_stride = args
        source = _element(context, builder, signature.args[3], src, src_at)
        target = _element(context, builder, signature.args[0], dst, dst_at)
        index = [ir.Constant(ir.IntType(64), i) for i in range(TILE)]
        rows = [builder.load(_vector(builder, source, builder.mul(src_stride, index[i])), align=1) for i in range(TILE)]
        interleaved = [lane // 2 + TILE * (lane % 2) for lane in range(2 * TILE)]
        halves = [ir.Constant(_WORDS, interleaved[:TILE]), ir.Constant(_WORDS, interleaved[TILE:])]
        for _ in range(TILE.bit_length() - 1):  # interleaving the two halves of the rows log2 times transposes
            pairs = zip(rows[: TILE // 2], rows[TILE // 2 :], strict=True)
            rows = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in halves]
        for i in range(TILE):
            builder.store(rows[i], _vector(builder, target, builder.mul(dst_stride, index[i])), align=1)
        return context.get_dummy_value()

    return types.void(dst, _AT, _AT, src, _AT, _AT), generate


@_primitive
def _copy(_: Any, dst: Any, dst_at: Any, src: Any, src_at: Any, n: Any):
    """dst[dst_at : dst_at + n] = src[src_at : src_at + n], as a memcpy: numba's slices cost more than a pass."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        dst, dst_at, src, src_at, n = args
        source = _element(context, builder, signature.args[2], src, src_at)
        target = _element(context, builder, signature.args[0], dst, dst_at)
        cgutils.raw_memcpy(builder, target, source, n, 1)
        return context.get_dummy_value()

    return types.void(dst, _AT, src, _AT, _AT), generate


@njit(nogil=True)
def _bicubic(x: float) -> float:
    """Keys' cubic, a = -0.5, in the operations and the order in which Pillow computes it."""
    x = abs(x)
    if x < 1.0:
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@njit(nogil=True, error_model="numpy")
def _coefficients(in_size: int, out_size: int, out_first: int, side: int) -> Coefficients:
    """Pillow's ``precompute_coeffs`` for outputs out_first .. out_first + S: first_S, taps_S, weight_ST (int32).

    Output s is the sum over t < taps_S[s] of weight_ST[s, t] * input[first_S[s] + t], in fixed point.
    """
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    inverse = 1.0 / stretch
    first_S, taps_S = np.empty(side, np.int64), np.empty(side, np.int64)
    weight_ST = np.empty((side, int(np.ceil(support)) * 2 + 1), np.int32)
    value_T = np.empty(weight_ST.shape[1], np.float64)
    for s in range(side):
        centre = (out_first + s + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        taps = min(int(centre + support + 0.5), in_size) - first
        total = 0.0
        for t in range(taps):
            value_T[t] = _bicubic((t + first - centre + 0.5) * inverse)
            total += value_T[t]
        for t in range(taps):
            weight = value_T[t] / total * (1 << PRECISION_BITS)
            weight_ST[s, t] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        first_S[s], taps_S[s] = first, taps
    return first_S, taps_S, weight_ST


@njit(nogil=True)
def _padded(size: int, step: int) -> int:
    return (size + step - 1) // step * step


@njit(nogil=True)
def _extent(first_S: np.ndarray, taps_S: np.ndarray) -> int:
    """How many inputs the outputs read, from first_S[0] on."""
    return first_S[-1] + taps_S[-1] - first_S[0]


@njit(nogil=True)
def _horizontal(
    dst: Bytes, dst_at: int, src: Bytes, src_at: int, src_stride: int, rows: int, coefficients: Coefficients, flip: bool
) -> None:
    """Resample ``rows`` rows, pixel first_S[0] of the first being at ``src_at``, into rows of S pixels, one by one."""
    first_S, taps_S, weight_ST = coefficients
    side, width = weight_ST.shape
    weights = weight_ST.reshape(-1)
    in_bytes, out_bytes = _extent(first_S, taps_S) * CHANNELS, side * CHANNELS
    in_stride, out_stride = _padded(in_bytes, TILE), _padded(out_bytes, TILE)
    block = np.empty(ROWS * max(in_stride, out_stride), np.uint8)
    columns = np.empty(in_stride * ROWS, np.uint8)
    resampled = np.empty(out_stride * ROWS, np.uint8)
    for row in range(0, rows, ROWS):
        count = min(ROWS, rows - row)
        for r in range(count):
            _copy(block, r * in_stride, src, src_at + (row + r) * src_stride, in_bytes)
        for r in range(0, ROWS, TILE):
            for b in range(0, in_stride, TILE):
                _transpose_tile(columns, b * ROWS + r, ROWS, block, r * in_stride + b, in_stride)
        for s in range(side):
            target = (side - 1 - s if flip else s) * LANES
            source = (first_S[s] - first_S[0]) * LANES
            _weighted_sum(resampled, target, columns, source, LANES, weights, s * width, taps_S[s])
        for r in range(0, ROWS, TILE):
            for b in range(0, out_stride, TILE):
                _transpose_tile(block, r * out_stride + b, out_stride, resampled, b * ROWS + r, ROWS)
        for r in range(count):
            _copy(dst, dst_at + (row + r) * out_bytes, block, r * out_stride, out_bytes)


@njit(nogil=True)
def _vertical(dst: Bytes, dst_at: int, src: Bytes, stride: int, coefficients: Coefficients) -> None:
    """Resample rows of ``stride`` bytes, row first_S[0] being the first of ``src``, which ends LANES after the last."""
    first_S, taps_S, weight_ST = coefficients
    side, width = weight_ST.shape
    weights = weight_ST.reshape(-1)
    line = np.empty(_padded(stride, LANES), np.uint8)
    for s in range(side):
        source = (first_S[s] - first_S[0]) * stride
        for b in range(0, stride, LANES):
            _weighted_sum(line, b, src, source + b, stride, weights, s * width, taps_S[s])
        _copy(dst, dst_at + s * stride, line, 0, stride)


_SIGNATURE = types.void(
    types.Array(types.uint8, 3, "C", readonly=True),  # takes writable arrays too
    types.int64[:, :, ::1],
    types.boolean[::1],
    types.uint8[:, :, :, ::1],
)


@njit(_SIGNATURE, nogil=True)
def resample(image_HWC: np.ndarray, window_VA4: np.ndarray, flip_V: np.ndarray, out_VSSC: np.ndarray) -> None:
    """See ``fastvicreg.kernels.resample.resample_views``; windows as in ``windows``, arguments already checked."""
    image, out = image_HWC.reshape(-1), out_VSSC.reshape(-1)
    stride = image_HWC.shape[1] * CHANNELS
    side = out_VSSC.shape[1]
    for v in range(len(window_VA4)):
        x, y = window_VA4[v, 0], window_VA4[v, 1]
        along_x = _coefficients(x[IN_SIZE], x[OUT_SIZE], x[OUT_FIRST], side)
        along_y = _coefficients(y[IN_SIZE], y[OUT_SIZE], y[OUT_FIRST], side)
        rows = _extent(along_y[0], along_y[1])
        image_at = (y[OFFSET] + along_y[0][0]) * stride + (x[OFFSET] + along_x[0][0]) * CHANNELS
        out_at = v * side * side * CHANNELS
        shrunk_x, shrunk_y = x[IN_SIZE] - x[OUT_SIZE], y[IN_SIZE] - y[OUT_SIZE]
        if shrunk_y > 0 and shrunk_y > 2 * shrunk_x:  # Pillow 13's order of the passes
            width = _extent(along_x[0], along_x[1]) * CHANNELS
            crop, lines = np.empty(rows * width + LANES, np.uint8), np.empty(side * width, np.uint8)
            for r in range(rows):
                _copy(crop, r * width, image, image_at + r * stride, width)
            _vertical(lines, 0, crop, width, along_y)
            _horizontal(out, out_at, lines, 0, width, side, along_x, flip_V[v])
        else:
            lines = np.empty(rows * side * CHANNELS + LANES, np.uint8)
            _horizontal(lines, 0, image, image_at, stride, rows, along_x, flip_V[v])
            _vertical(out, out_at, lines, side * CHANNELS, along_y)
