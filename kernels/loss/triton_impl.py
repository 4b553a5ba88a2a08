"""The loss by Triton: the passes of ``fused`` launched with the tiles that fit their operands.

Half of the Gram matrix is computed, its other half written as a mirror image; its squares and all of the gradient
but the matrix product ride on the tiles while they are in registers.

Shape suffixes: as in ``fused``.
"""

from __future__ import annotations

import functools
import sys
from typing import NamedTuple, cast

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from fastvicreg.kernels import triton_host
from fastvicreg.kernels.loss import fused, triton_kernels
from fastvicreg.kernels.loss.operators import Weights
from fastvicreg.kernels.loss.ranks import Ranks


class Tiles(NamedTuple):
    """Rows and columns of a program's tile, steps of the summed index, and how Triton shares them out."""

    i: int
    j: int
    depth: int
    warps: int
    stages: int


STRIP = {"ROWS": 128, "COLUMNS": 32}
BLOCK = 1024
GROUP = 8


def matrix_tiles(p: int, half: bool) -> Tiles:
    """Square; smaller ones where the matrix has too few to occupy a GPU."""
    if not half:
        return Tiles(64, 64, 32, 4, 3)
    return Tiles(128, 128, 64, 8, 3) if p >= 1024 else Tiles(64, 64, 128, 4, 3)


def gradient_tiles(n: int, half: bool) -> Tiles:
    """Wider than high where there are few rows."""
    if not half:
        return Tiles(64, 64, 32, 4, 3)
    return Tiles(128, 128, 64, 8, 3) if n >= 1024 else Tiles(64, 128, 64, 4, 4)


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter (TRITON_INTERPRET=1), which takes tensors of the CPU."""
    return isinstance(triton_kernels.terms, InterpretedFunction)


def obstacle(device: str, dtype: torch.dtype) -> str:
    """Why these passes cannot run; "" where they can."""
    if not interpreted():
        return fused.obstacle(device, dtype) or triton_host.missing()
    if dtype not in (torch.float32, torch.float16):
        return f"Triton's interpreter multiplies float32 and float16 alone, not {str(dtype).removeprefix('torch.')}"
    return ""


def precision() -> str:
    """Of fp32 products, as torch's own follow it: ``torch.set_float32_matmul_precision``."""
    return "ieee" if torch.backends.cuda.matmul.fp32_precision in ("none", "ieee") else "tf32"


def statistics(za: Tensor, zb: Tensor, mean_2D: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """As ``fused.Passes``."""
    m, d = za.shape
    strips = triton.cdiv(d, STRIP["COLUMNS"])
    x_2MD = za.new_empty(2, m, d)
    power_2D, distance_S = (za.new_empty(*shape, dtype=torch.float32) for shape in ((2, d), (strips,)))
    given = mean_2D is not None
    triton_host.launch(
        triton_kernels.statistics,
        (strips,),
        *(za, zb, mean_2D if given else power_2D, x_2MD, power_2D, distance_S, m, d),
        GIVEN=given,
        **STRIP,
    )
    return x_2MD, power_2D, distance_S


def matrix(x_2MD: Tensor, trace_2: Tensor, m: int, ranks: Ranks, *, gram: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As ``fused.Passes``."""
    _, rows, d = x_2MD.shape
    p, q = (rows // ranks.size, rows) if gram else (d, d)
    half = x_2MD.dtype != torch.float32
    raw, triangle = ranks.size > 1 and not gram, p == q
    tiles = matrix_tiles(p, half)
    down, across = triton.cdiv(p, tiles.i), triton.cdiv(q, tiles.j)
    count = down * (down + 1) // 2 if triangle else down * across
    product_2PQ = x_2MD.new_empty(2, p, q, dtype=torch.float32 if raw else x_2MD.dtype)
    diagonal_2P, squares_2S = (trace_2.new_empty(2, length) for length in (p if gram else 0, count))
    triton_host.launch(
        triton_kernels.matrix,
        (count, 2),
        *(x_2MD, trace_2, product_2PQ, diagonal_2P, squares_2S, p, q),
        *((d, d, 1) if gram else (rows, 1, d)),
        *(rows * d, ranks.rank * p if gram else 0, float(m - 1), fused.HALF_LIMIT, fused.LEAST_TRACE),
        GRAM=gram,
        TRIANGLE=triangle,
        RAW=raw,
        HALF=half,
        PRECISION=precision(),
        TILE=tiles.i,
        DEPTH=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    if raw:
        product_2PQ, squares_2S = _joined(product_2PQ, trace_2, m, ranks, x_2MD.dtype)
    return product_2PQ, diagonal_2P, squares_2S


def _joined(part_2DD: Tensor, trace_2: Tensor, m: int, ranks: Ranks, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the matrix pass ends with, once the ranks' parts are summed."""
    ranks.add(part_2DD).diagonal(dim1=1, dim2=2).zero_()
    squares_21 = torch.linalg.vector_norm(part_2DD, dim=(1, 2)).div_(m - 1).square_().view(2, 1)
    if dtype != torch.float32:
        part_2DD.mul_((fused.HALF_LIMIT / trace_2.clamp(min=fused.LEAST_TRACE)).view(2, 1, 1))
    return part_2DD.to(dtype), squares_21


def terms(
    power_2D: Tensor, squares_2S: Tensor, distance_S: Tensor, weights: Weights, m: int, size: int, *, gram: bool
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """As ``fused.Passes``."""
    d = power_2D.shape[1]
    slope_2D = torch.empty_like(power_2D)
    total, invariance, variance, covariance = (power_2D.new_empty(()) for _ in range(4))
    triton_host.launch(
        triton_kernels.terms,
        (1,),
        *(power_2D, squares_2S, distance_S, slope_2D, total, invariance, variance, covariance),
        *(d, squares_2S.shape[1], len(distance_S), float(m * d), float(m - 1), *weights, float(size)),
        GRAM=gram,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return (total, invariance, variance, covariance), slope_2D


def gradients(
    scale: Tensor, za_ND: Tensor, zb_ND: Tensor, kept: fused.Kept, factors: fused.Factors, views: range
) -> list[Tensor]:
    """As ``fused.Passes``."""
    n, d = za_ND.shape
    half = za_ND.dtype != torch.float32
    tiles = gradient_tiles(n, half)
    both = (za_ND, zb_ND)
    grads = [torch.empty_like(za_ND) for _ in views]
    for view, grad_ND in zip(views, grads, strict=True):
        triton_host.launch(
            triton_kernels.gradient,
            (triton.cdiv(n, tiles.i) * triton.cdiv(d, tiles.j),),
            *(scale, both[view], both[1 - view], *(each_2[view] for each_2 in kept), grad_ND),
            *(n, d, kept.product_2PQ.shape[2], factors.first_row, factors.push, factors.pull),
            *(fused.HALF_LIMIT, fused.LEAST_TRACE),
            GRAM=factors.gram,
            HALF=half,
            PRECISION=precision(),
            TILE_I=tiles.i,
            TILE_J=tiles.j,
            DEPTH=tiles.depth,
            GROUP=GROUP,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    return grads


PASSES = cast(fused.Passes, sys.modules[__name__])
forward = functools.partial(fused.forward, PASSES)
backward = functools.partial(fused.backward, PASSES)
kept_shapes = fused.kept_shapes
