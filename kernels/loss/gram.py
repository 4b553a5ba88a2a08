"""The VICReg loss through the smaller of the N x N Gram matrix and the D x D covariance, with its own gradient.

||Zc^T Zc||_F = ||Zc Zc^T||_F for centred Zc, so that where N < D nothing of D x D is formed: the covariance term
is (||G||_F^2 - sum of squared variances) / D with G = Zc Zc^T / (N - 1), its gradient 4 (G Zc - Zc v) / (D (N - 1)).
Forward keeps that matrix and the column statistics; backward folds the incoming scalar into them. Buffers of N x D
are written over rather than allocated anew: on a CPU the page faults of fresh memory cost more than the arithmetic.

Among several ranks N is the global batch's. Where N < D each gathers all rows and forms its own rows of G alone, so
that backward needs no other rank; else each forms its rows' part of the covariance, and the parts are summed.

Shape suffixes: N samples of this rank's batch, M of the global batch, D embedding width, P by Q the matrix that is
kept: N x M, or D x D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvicreg.kernels.loss.operators import Shape, Weights, wide_dtype
from fastvicreg.kernels.loss.ranks import Ranks


def forward(
    za_ND: Tensor, zb_ND: Tensor, weights: Weights, ranks: Ranks
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Tensor]]:
    """As ``operators.Method``; kept: a view's gathered rows among several ranks, mean, hinge slope and matrix."""
    n, d = za_ND.shape
    m = n * ranks.size
    wide = wide_dtype(za_ND.dtype)
    rows = ranks.gathered(za_ND, zb_ND) if m < d else (za_ND, zb_ND)
    scratch = torch.empty_like(rows[0], dtype=wide)
    centred = torch.empty_like(scratch)
    invariance = ranks.add(_squared_distance(*rows, scratch)) if m >= d else _squared_distance(*rows, scratch)
    invariance = invariance / (m * d)

    means = [z.mean(dim=0, dtype=wide) for z in rows]
    if m >= d and ranks.size > 1:
        means = ranks.add(torch.stack(means)).div_(ranks.size).unbind()

    variances, squares, diagonals, kept = [], [], [], []
    for z, mean_D in zip(rows, means, strict=True):
        x = _centred(z, mean_D, centred)
        if m < d:
            product_PQ = wide_matmul(ranks.own(x), x.T).div_(m - 1)
            wide_x = x.to(wide)
            variance_D = torch.mul(wide_x, wide_x, out=scratch).sum(dim=0) / (m - 1)
            diagonals.append(variance_D.square().sum())
        else:
            product_PQ = ranks.add(wide_matmul(x.T, x)).div_(m - 1)
            variance_D = product_PQ.diagonal().clone()
            product_PQ.fill_diagonal_(0)
        squares.append(product_PQ.square().sum())
        std_D = torch.sqrt(variance_D + weights.eps)
        hinge_D = torch.relu(weights.gamma - std_D)
        variances.append(weights.branch_share * hinge_D.mean())
        slope_D = (hinge_D > 0) / std_D * (-weights.variance * weights.branch_share / (d * (m - 1)))
        if m < d:
            slope_D -= variance_D * (4 * weights.covariance / (d * (m - 1)))
        kept += [mean_D.clone() if ranks.size > 1 else mean_D, slope_D, product_PQ]
        if m < d and ranks.size > 1:
            kept.append(z)

    if m < d:
        if ranks.size > 1:
            squares = ranks.add(torch.stack(squares)).unbind()
        squares = [square - diagonal for square, diagonal in zip(squares, diagonals, strict=True)]
    covariances = [square / d for square in squares]
    variance, covariance = variances[0] + variances[1], covariances[0] + covariances[1]
    total = weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance
    return (total, invariance, variance, covariance), kept


def backward(
    scale: Tensor,
    za_ND: Tensor,
    zb_ND: Tensor,
    kept: list[Tensor],
    weights: Weights,
    ranks: Ranks,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """As ``operators.Method``."""
    n, d = za_ND.shape
    m = n * ranks.size
    pull = scale * (2 * weights.invariance / (n * d))
    push = scale * (4 * weights.covariance * ranks.size / (d * (m - 1)))
    own_buffer = torch.empty_like(za_ND, dtype=scale.dtype)
    each = len(kept) // 2
    result: list[Tensor | None] = [None, None]
    for i, (z_ND, other_ND) in enumerate(((za_ND, zb_ND), (zb_ND, za_ND))):
        if needs[i]:
            mean_D, slope_D, product_PQ, *gathered = kept[each * i : each * (i + 1)]
            z = gathered[0] if gathered else z_ND
            x = _centred(z, mean_D, torch.empty_like(z, dtype=scale.dtype) if gathered else own_buffer)
            x_ND = ranks.own(x) if gathered else x
            grad_ND = _apply(product_PQ * push, x, gram=m < d)
            grad_ND.addcmul_(x_ND.to(scale.dtype), slope_D * (scale * ranks.size))
            torch.sub(z_ND.to(scale.dtype), other_ND, out=own_buffer)
            result[i] = grad_ND.addcmul_(own_buffer, pull).to(z_ND.dtype)
    return result[0], result[1]


def kept_shapes(n: int, d: int, dtype: torch.dtype, ranks: Ranks) -> list[tuple[Shape, torch.dtype]]:
    """As ``operators.Method``."""
    m = n * ranks.size
    wide = wide_dtype(dtype)
    view = [((d,), wide), ((d,), wide), ((n, m) if m < d else (d, d), wide)]
    if m < d and ranks.size > 1:
        view.append(((m, d), dtype))
    return view * 2


def _squared_distance(za: Tensor, zb: Tensor, scratch: Tensor) -> Tensor:
    return torch.sub(za.to(scratch.dtype), zb, out=scratch).square_().sum()


def _centred(z: Tensor, mean_D: Tensor, buffer: Tensor) -> Tensor:
    """The operand of the matrix products: centred in the wide type, then rounded to the embedding's own."""
    return torch.sub(z, mean_D, out=buffer).to(z.dtype)


def _apply(product_PQ: Tensor, x: Tensor, *, gram: bool) -> Tensor:
    """Rows of the Gram matrix times all embeddings, or own embeddings times the covariance, in the wide type."""
    if x.dtype == product_PQ.dtype:
        return product_PQ @ x if gram else x @ product_PQ
    # Scaled to its largest element, the matrix keeps within a half type's range whatever the loss scale is.
    top = product_PQ.abs().amax().clamp(min=torch.finfo(product_PQ.dtype).tiny)
    half_PQ = (product_PQ / top).to(x.dtype)
    return (wide_matmul(half_PQ, x) if gram else wide_matmul(x, half_PQ)).mul_(top)


def wide_matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """The product in the wide type: a half type's products are exact there, and no device rounds their sum back.

    Of two matrices, or of as many pairs of them.
    """
    product = torch.mm if left.ndim == 2 else torch.bmm
    if left.dtype not in (torch.bfloat16, torch.float16):
        return product(left, right, out=out)
    if left.device.type == "cuda":
        return product(left, right, torch.float32, out=out)
    return product(left.float(), right.float(), out=out)
