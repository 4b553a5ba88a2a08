"""The VICReg loss: one function, whose implementations are swapped by name.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fastvicreg.contracts import UserError
from fastvicreg.kernels.loss.expected import expected_covariance
from fastvicreg.registry import resolve, unknown

__all__ = ["IMPLEMENTATIONS", "Form", "LossTerms", "choose", "expected_covariance", "vicreg_loss"]

log = logging.getLogger(__name__)

Form = Literal["official", "paper"]
"""Whether the variance hinge of each branch is halved, as in the official code, or not, as in the paper."""

IMPLEMENTATIONS = {
    "auto": "fastvicreg.kernels.loss.gram:vicreg_terms",
    "reference": "fastvicreg.kernels.loss.reference:vicreg_terms",
    "gram": "fastvicreg.kernels.loss.gram:vicreg_terms",
}


class LossTerms(NamedTuple):
    """Scalars in fp64 for fp64 embeddings, else fp32; ``total`` alone carries the gradient, the rest is unweighted."""

    total: Tensor
    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg_loss(
    za_ND: Tensor,
    zb_ND: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    form: Form = "official",
    impl: str = "auto",
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> LossTerms:
    """VICReg's loss between the embeddings of two views (Bardes et al., arXiv 2105.04906, Algorithm 1).

    ``total`` is ``invariance`` times the mean squared error, plus ``variance`` times the hinge
    ``relu(gamma - sqrt(var + eps))`` averaged over D and summed over the two branches (each halved in the
    "official" form, main_vicreg.py, not in "paper"), plus ``covariance`` times the squared off-diagonal
    covariances over D, summed over the branches. Variances and covariances are unbiased.

    fp64, fp32, bf16 or fp16; half types are reduced in fp32. Independent of autocast. Differentiable once by
    "gram", any number of times by "reference".

    Raises ``ValueError`` where the embeddings do not fit each other, ``UserError`` for an unknown ``form`` or ``impl``.
    """
    _check(za_ND, zb_ND)
    if form not in get_args(Form):
        raise UserError(unknown("loss form", form, get_args(Form)))
    terms = choose(impl)
    with torch.autocast(za_ND.device.type, enabled=False):
        return LossTerms(
            *terms(
                za_ND,
                zb_ND,
                weights=(invariance, variance, covariance),
                branch_share=0.5 if form == "official" else 1.0,
                gamma=gamma,
                eps=eps,
            )
        )


@functools.cache
def choose(impl: str) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The implementation of that name, logged once; ``UserError`` for an unknown one."""
    terms = resolve("loss implementation", impl, IMPLEMENTATIONS)
    log.info("loss implementation: %s (%s)", impl, IMPLEMENTATIONS[impl])
    return terms


def _check(za_ND: Tensor, zb_ND: Tensor) -> None:
    shapes = f"{tuple(za_ND.shape)} and {tuple(zb_ND.shape)}"
    if za_ND.ndim != 2 or za_ND.shape != zb_ND.shape:
        raise ValueError(f"the two views' embeddings must both be (N, D), got {shapes}")
    if za_ND.shape[0] < 2 or za_ND.shape[1] < 1:
        raise ValueError(f"a variance needs N >= 2 samples of D >= 1 dimensions, got {shapes}")
    if za_ND.dtype != zb_ND.dtype or za_ND.device != zb_ND.device:
        kinds = f"{za_ND.dtype} on {za_ND.device} and {zb_ND.dtype} on {zb_ND.device}"
        raise ValueError(f"the two views' embeddings, {shapes}, must share dtype and device, got {kinds}")
    if not za_ND.is_floating_point():
        raise ValueError(f"embeddings must be floating point, got {za_ND.dtype} of shapes {shapes}")
