"""The loss in CUDA C++ and cuBLAS: the passes of ``fused`` by torch's matrix products and the kernels beside this.

Shape suffixes: as in ``fused``.
"""

from __future__ import annotations

import functools
import sys
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fastvicreg.kernels.cuda import Variant, kernel, missing
from fastvicreg.kernels.loss import fused
from fastvicreg.kernels.loss.gram import wide_matmul
from fastvicreg.kernels.loss.operators import Weights
from fastvicreg.kernels.loss.ranks import Ranks

OPERANDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
THREADS = 256
TERMS_THREADS = 512
STRIP_BYTES = 32
"""Of a row in one block's strip of columns: a memory sector."""

SQUARES_BLOCKS = 256
"""Of a view; a fixed number, so that the order of the sum does not hang on the device."""

GRADIENT_ROWS = 2048
STATIC_SHARED_BYTES = 1 << 10


def obstacle(device: str, dtype: torch.dtype) -> str:
    """Why these passes cannot run; "" where they can."""
    return fused.obstacle(device, dtype) or missing()


def shared_limit(device: torch.device) -> int:
    """Bytes of shared memory that a block may take there."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def statistics(za: Tensor, zb: Tensor, mean_2D: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """As ``fused.Passes``."""
    m, d = za.shape
    columns = STRIP_BYTES // za.element_size()
    strips = -(-d // columns)
    held_bytes = 2 * m * STRIP_BYTES
    held = held_bytes + STATIC_SHARED_BYTES <= shared_limit(za.device)
    x_2MD = za.new_empty(2, m, d)
    power_2D, distance_S = (za.new_empty(*shape, dtype=torch.float32) for shape in ((2, d), (strips,)))
    defines = _defines(za, zb, x_2MD) | {"THREADS": THREADS, "COLUMNS": columns, "HELD": int(held)}
    kernel("loss/stats.cu", "statistics", defines=defines, device=za.device)(
        *(strips, THREADS, za, zb, mean_2D, x_2MD, power_2D, distance_S, np.int64(m), np.int64(d)),
        shared_bytes=held_bytes if held else 0,
    )
    return x_2MD, power_2D, distance_S


def matrix(x_2MD: Tensor, trace_2: Tensor, m: int, ranks: Ranks, *, gram: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As ``fused.Passes``."""
    _, rows, d = x_2MD.shape
    p, q = (rows // ranks.size, rows) if gram else (d, d)
    matrix_2PQ = trace_2.new_empty(2, p, q)
    own_2PD, turned_2DM = x_2MD[:, ranks.rank * p : (ranks.rank + 1) * p], x_2MD.transpose(1, 2)
    wide_matmul(*((own_2PD, turned_2DM) if gram else (turned_2DM, x_2MD)), out=matrix_2PQ)
    if not gram:
        ranks.add(matrix_2PQ)
    product_2PQ = matrix_2PQ if x_2MD.dtype == torch.float32 else x_2MD.new_empty(2, p, q)
    diagonal_2P = trace_2.new_empty(2, p if gram else 0)
    blocks = min(p, SQUARES_BLOCKS)
    squares_2S = trace_2.new_empty(2, blocks)
    defines = {"THREADS": THREADS, "OPERAND": OPERANDS[x_2MD.dtype], "VEC": 1}
    kernel("loss/terms.cu", "squares", defines=defines, device=x_2MD.device)(
        *((blocks, 2), THREADS, matrix_2PQ, trace_2, product_2PQ, diagonal_2P if gram else None, squares_2S),
        *(np.int64(p), np.int64(q), np.int64(ranks.rank * p if gram else 0)),
        *(float(m - 1), fused.HALF_LIMIT, fused.LEAST_TRACE),
    )
    return product_2PQ, diagonal_2P, squares_2S


def terms(
    power_2D: Tensor, squares_2S: Tensor, distance_S: Tensor, weights: Weights, m: int, size: int, *, gram: bool
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """As ``fused.Passes``."""
    d = power_2D.shape[1]
    slope_2D = torch.empty_like(power_2D)
    total, invariance, variance, covariance = (power_2D.new_empty(()) for _ in range(4))
    defines = {"THREADS": TERMS_THREADS, "OPERAND": 0, "VEC": 1}
    kernel("loss/terms.cu", "terms", defines=defines, device=power_2D.device)(
        *(1, TERMS_THREADS, power_2D, squares_2S, distance_S, slope_2D, total, invariance, variance, covariance),
        *(np.int64(d), np.int64(squares_2S.shape[1]), np.int64(len(distance_S))),
        *(float(m * d), float(m - 1), *map(float, weights), float(size), np.int32(gram)),
    )
    return (total, invariance, variance, covariance), slope_2D


def gradients(
    scale: Tensor, za_ND: Tensor, zb_ND: Tensor, kept: fused.Kept, factors: fused.Factors, views: range
) -> list[Tensor]:
    """As ``fused.Passes``."""
    n, d = za_ND.shape
    of = slice(views.start, views.stop)
    x_VMD, product_VPQ = kept.x_2MD[of], kept.product_2PQ[of]
    sum_VND = wide_matmul(product_VPQ, x_VMD) if factors.gram else wide_matmul(x_VMD, product_VPQ)
    grads = [torch.empty_like(za_ND) for _ in views]
    defines = _defines(za_ND, zb_ND, kept.x_2MD, sum_VND, kept.slope_2D, *grads) | {"THREADS": THREADS}
    across = -(-d // (THREADS * int(defines["VEC"])))
    kernel("loss/terms.cu", "gradient", defines=defines, device=za_ND.device)(
        *((across, min(n, GRADIENT_ROWS), len(views)), THREADS, scale, sum_VND, za_ND, zb_ND, kept.x_2MD),
        *(kept.diagonal_2P if factors.gram else None, kept.slope_2D, kept.trace_2),
        *(grads[0], grads[1] if len(grads) > 1 else None),
        *(np.int64(n), np.int64(d), np.int64(kept.x_2MD.shape[1]), np.int64(factors.first_row)),
        *(np.int32(views.start), factors.push, factors.pull, fused.HALF_LIMIT, fused.LEAST_TRACE),
    )
    return grads


def _defines(operand: Tensor, *others: Tensor) -> dict[str, str | int]:
    """Accesses of 16 bytes where every row starts at a multiple of them, else of one element."""
    vector = 16 // operand.element_size()
    aligned = all(tensor.data_ptr() % 16 == 0 for tensor in (operand, *others))
    fits = aligned and operand.shape[-1] % vector == 0
    return {"OPERAND": OPERANDS[operand.dtype], "VEC": vector if fits else 1}


def variants() -> list[Variant]:
    """What these passes compile: accesses of 16 bytes or one element, a strip held in shared memory or read twice."""
    found = [Variant("loss/terms.cu", {"THREADS": TERMS_THREADS, "OPERAND": 0, "VEC": 1})]
    for dtype, operand in OPERANDS.items():
        for vector in (16 // dtype.itemsize, 1):
            defines = {"THREADS": THREADS, "OPERAND": operand, "VEC": vector}
            strip = defines | {"COLUMNS": STRIP_BYTES // dtype.itemsize}
            found.append(Variant("loss/terms.cu", defines))
            found += [Variant("loss/stats.cu", strip | {"HELD": held}) for held in (0, 1)]
    return found


PASSES = cast(fused.Passes, sys.modules[__name__])
forward = functools.partial(fused.forward, PASSES)
backward = functools.partial(fused.backward, PASSES)
kept_shapes = fused.kept_shapes
