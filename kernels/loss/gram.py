"""The VICReg loss through the smaller of the N x N Gram matrix and the D x D covariance, with its own gradient.

||Zc^T Zc||_F = ||Zc Zc^T||_F for centred Zc, so that where N < D nothing of D x D is formed: the covariance term
is (||G||_F^2 - sum of squared variances) / D with G = Zc Zc^T / (N - 1), its gradient 4 (G Zc - Zc v) / (D (N - 1)).
Forward keeps that matrix and the column statistics; backward folds the incoming scalar into them, so that a
loss scale acts before any rounding to a half type. Buffers of N x D are written over rather than allocated anew:
on a CPU the page faults of fresh memory cost more than the arithmetic.

Shape suffixes: N samples of the batch, D embedding width, S the smaller of the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def vicreg_terms(
    za_ND: Tensor,
    zb_ND: Tensor,
    *,
    weights: tuple[float, float, float],
    branch_share: float,
    gamma: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, invariance, variance, covariance); ``branch_share`` weighs each branch's hinge: 0.5 official, 1 paper."""
    return _Loss.apply(za_ND, zb_ND, weights, branch_share, gamma, eps)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        za_ND: Tensor,
        zb_ND: Tensor,
        weights: tuple[float, float, float],
        branch_share: float,
        gamma: float,
        eps: float,
    ) -> tuple[Tensor, ...]:
        n, d = za_ND.shape
        wide = torch.promote_types(za_ND.dtype, torch.float32)
        scratch_ND = za_ND.to(wide) - zb_ND
        invariance = scratch_ND.square_().sum() / (n * d)
        centred_ND = torch.empty_like(scratch_ND)

        variances, covariances, saved = [], [], [za_ND, zb_ND]
        for z_ND in (za_ND, zb_ND):
            mean_D, variance_D, product_SS, squares = _statistics(z_ND, centred_ND, scratch_ND)
            std_D = torch.sqrt(variance_D + eps)
            hinge_D = torch.relu(gamma - std_D)
            variances.append(branch_share * hinge_D.mean())
            covariances.append(squares / d)
            slope_D = (hinge_D > 0) / std_D * (-weights[1] * branch_share / (d * (n - 1)))
            if n < d:
                slope_D -= variance_D * (4 * weights[2] / (d * (n - 1)))
            saved += [mean_D, slope_D, product_SS]

        variance, covariance = variances[0] + variances[1], covariances[0] + covariances[1]
        total = weights[0] * invariance + weights[1] * variance + weights[2] * covariance
        ctx.save_for_backward(*saved)
        ctx.weights = weights
        ctx.mark_non_differentiable(invariance, variance, covariance)
        return total, invariance, variance, covariance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # `once_differentiable` lets a second derivative pass as zero where the incoming gradient is a constant.
        if torch.is_grad_enabled():
            raise RuntimeError("the gram loss is differentiable once; for create_graph=True use impl='reference'")
        scale = grads[0]
        za_ND, zb_ND, *kept = ctx.saved_tensors
        n, d = za_ND.shape
        pull = scale * (2 * ctx.weights[0] / (n * d))
        push = scale * (4 * ctx.weights[2] / (d * (n - 1)))
        buffer_ND = torch.empty_like(za_ND, dtype=scale.dtype)
        result: list[Tensor | None] = [None, None]
        with torch.autocast(za_ND.device.type, enabled=False):
            for i, (z_ND, other_ND) in enumerate(((za_ND, zb_ND), (zb_ND, za_ND))):
                if ctx.needs_input_grad[i]:
                    mean_D, slope_D, product_SS = kept[3 * i : 3 * i + 3]
                    x_ND = _centred(z_ND, mean_D, buffer_ND)
                    grad_ND = _apply(product_SS * push, x_ND).addcmul_(x_ND.to(scale.dtype), slope_D * scale)
                    torch.sub(z_ND.to(scale.dtype), other_ND, out=buffer_ND)
                    result[i] = grad_ND.addcmul_(buffer_ND, pull).to(z_ND.dtype)
        return *result, None, None, None, None


class _Statistics(NamedTuple):
    mean_D: Tensor
    variance_D: Tensor  # unbiased, of the matrix product's operand as rounded
    product_SS: Tensor  # G where N < D; else the covariance with its diagonal zeroed
    squares: Tensor  # sum of the covariance's squared off-diagonal elements


def _statistics(z_ND: Tensor, centred_ND: Tensor, scratch_ND: Tensor) -> _Statistics:
    """Of one view; both buffers, in the wide type, are written over."""
    n, d = z_ND.shape
    mean_D = z_ND.mean(dim=0, dtype=centred_ND.dtype)
    x_ND = _centred(z_ND, mean_D, centred_ND)
    if n < d:
        product_SS = _matmul(x_ND, x_ND.T).div_(n - 1)
        wide_ND = x_ND.to(centred_ND.dtype)
        variance_D = torch.mul(wide_ND, wide_ND, out=scratch_ND).sum(dim=0) / (n - 1)
        return _Statistics(mean_D, variance_D, product_SS, product_SS.square().sum() - variance_D.square().sum())
    product_SS = _matmul(x_ND.T, x_ND).div_(n - 1)
    variance_D = product_SS.diagonal().clone()
    return _Statistics(mean_D, variance_D, product_SS, product_SS.fill_diagonal_(0).square().sum())


def _centred(z_ND: Tensor, mean_D: Tensor, buffer_ND: Tensor) -> Tensor:
    """The operand of the matrix products: centred in the wide type, then rounded to the embedding's own."""
    return torch.sub(z_ND, mean_D, out=buffer_ND).to(z_ND.dtype)


def _apply(product_SS: Tensor, x_ND: Tensor) -> Tensor:
    """The Gram matrix times the embedding, or the embedding times the covariance, in the wide type."""
    gram = x_ND.shape[0] < x_ND.shape[1]
    if x_ND.dtype == product_SS.dtype:
        return product_SS @ x_ND if gram else x_ND @ product_SS
    # Scaled to its largest element, the matrix keeps within a half type's range whatever the loss scale is.
    top = product_SS.abs().amax().clamp(min=torch.finfo(product_SS.dtype).tiny)
    half_SS = (product_SS / top).to(x_ND.dtype)
    return (_matmul(half_SS, x_ND) if gram else _matmul(x_ND, half_SS)).mul_(top)


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """The product in the wide type: a half type's products are exact there, and no device rounds their sum back."""
    if left.dtype not in (torch.bfloat16, torch.float16):
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left, right, torch.float32)
    return left.float() @ right.float()
