"""The definition of the VICReg loss, in plain torch: what the other implementations are held against.

Shape suffixes: N samples of the batch, D embedding width, M samples of the global batch, of which N are this rank's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fastvicreg.kernels.loss.operators import Weights
from fastvicreg.kernels.loss.ranks import GatherRows, Ranks


def vicreg_terms(
    za_ND: Tensor,
    zb_ND: Tensor,
    weights: Weights,
    ranks: Ranks,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, invariance, variance, covariance), to be differentiated by autograd.

    Among several ranks as the official code: the squared error's gradient is of the rank's own mean, the other terms
    are the global batch's, gathered with gradients, so that DDP's average over the ranks is the global gradient.
    """
    if za_ND.dtype in (torch.bfloat16, torch.float16):
        za_ND, zb_ND = za_ND.float(), zb_ND.float()
    return official_terms(za_ND, zb_ND, weights, ranks)


def official_terms(
    za_ND: Tensor,
    zb_ND: Tensor,
    weights: Weights,
    ranks: Ranks,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same in the types that the embeddings and autocast give it, half ones too: what the official code runs."""
    invariance = functional.mse_loss(za_ND, zb_ND)
    if ranks.size > 1:
        invariance = _averaged(invariance, ranks)
        za_ND, zb_ND = (GatherRows.apply(z_ND, ranks) for z_ND in (za_ND, zb_ND))
    za_MD = za_ND - za_ND.mean(dim=0)
    zb_MD = zb_ND - zb_ND.mean(dim=0)
    variance = weights.branch_share * (_hinge(za_MD, weights) + _hinge(zb_MD, weights))
    covariance = _covariance(za_MD) + _covariance(zb_MD)

    total = weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance
    return total, invariance.detach(), variance.detach(), covariance.detach()


def several_terms(
    views_ND: Sequence[Tensor],
    weights: Weights,
    ranks: Ranks,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``vicreg_terms`` of two views or more: the definition, view by view and pair by pair.

    Invariance is the mean over all pairs of views; variance and covariance are twice the means over views, which for
    two views are their sums. For the number of processes as ``vicreg_terms``.
    """
    wide_ND = [z_ND.float() if z_ND.dtype in (torch.bfloat16, torch.float16) else z_ND for z_ND in views_ND]
    distances = [functional.mse_loss(one_ND, other_ND) for one_ND, other_ND in itertools.combinations(wide_ND, 2)]
    invariance = torch.stack(distances).mean()
    if ranks.size > 1:
        invariance = _averaged(invariance, ranks)
        wide_ND = [GatherRows.apply(z_ND, ranks) for z_ND in wide_ND]
    centred_MD = [z_MD - z_MD.mean(dim=0) for z_MD in wide_ND]
    variance = 2 * weights.branch_share * torch.stack([_hinge(z_MD, weights) for z_MD in centred_MD]).mean()
    covariance = 2 * torch.stack([_covariance(z_MD) for z_MD in centred_MD]).mean()

    total = weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance
    return total, invariance.detach(), variance.detach(), covariance.detach()


def _averaged(invariance: Tensor, ranks: Ranks) -> Tensor:
    """The value is the mean over the ranks, the gradient the rank's own."""
    mean = ranks.add(invariance.detach().clone()) / ranks.size
    return invariance + (mean - invariance).detach()


def _hinge(z_ND: Tensor, weights: Weights) -> Tensor:
    std_D = torch.sqrt(z_ND.var(dim=0) + weights.eps)
    return functional.relu(weights.gamma - std_D).mean()


def _covariance(z_ND: Tensor) -> Tensor:
    n, d = z_ND.shape
    covariance_DD = z_ND.T @ z_ND / (n - 1)
    # Past the first element every (D + 1)-th is on the diagonal: a view, where a mask would copy D x D.
    off_diagonal = covariance_DD.flatten()[1:].view(d - 1, d + 1)[:, :-1]
    return off_diagonal.square().sum() / d
