"""The definition of the VICReg loss, in plain torch: what the other implementations are held against.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
    if za_ND.dtype in (torch.bfloat16, torch.float16):
        za_ND, zb_ND = za_ND.float(), zb_ND.float()

    invariance = functional.mse_loss(za_ND, zb_ND)
    za_ND = za_ND - za_ND.mean(dim=0)
    zb_ND = zb_ND - zb_ND.mean(dim=0)
    variance = branch_share * (_hinge(za_ND, gamma, eps) + _hinge(zb_ND, gamma, eps))
    covariance = _covariance(za_ND) + _covariance(zb_ND)

    total = weights[0] * invariance + weights[1] * variance + weights[2] * covariance
    return total, invariance.detach(), variance.detach(), covariance.detach()


def _hinge(z_ND: Tensor, gamma: float, eps: float) -> Tensor:
    std_D = torch.sqrt(z_ND.var(dim=0) + eps)
    return functional.relu(gamma - std_D).mean()


def _covariance(z_ND: Tensor) -> Tensor:
    n, d = z_ND.shape
    covariance_DD = z_ND.T @ z_ND / (n - 1)
    # Past the first element every (D + 1)-th is on the diagonal: a view, where a mask would copy D x D.
    off_diagonal = covariance_DD.flatten()[1:].view(d - 1, d + 1)[:, :-1]
    return off_diagonal.square().sum() / d
