"""The VICReg loss of two views, and of more: one function each, whose implementations are swapped by name.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.loss.expected import expected_covariance
from fastvicreg.kernels.loss.operators import Weights, vicreg_terms, without_autocast
from fastvicreg.kernels.loss.ranks import Ranks, group_name
from fastvicreg.kernels.loss.reference import several_terms
from fastvicreg.kernels.loss.reference import vicreg_terms as reference_terms
from fastvicreg.kernels.loss.several import mean_pair_distance, spread_pairs
from fastvicreg.registry import unknown

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Form", "LossTerms", "choose", "expected_covariance", "known", "several_views_loss", "vicreg_loss"]

choose, known = KERNELS["loss"].choose, KERNELS["loss"].known
REFERENCE = KERNELS["loss"].implementations["reference"].target

Form = Literal["official", "paper"]
"""Whether the variance hinge of each branch is halved, as in the official code, or not, as in the paper."""


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
    group: ProcessGroup | None = None,
) -> LossTerms:
    """VICReg's loss between the embeddings of two views (Bardes et al., arXiv 2105.04906, Algorithm 1).

    ``total`` is ``invariance`` times the mean squared error, plus ``variance`` times the hinge
    ``relu(gamma - sqrt(var + eps))`` averaged over D and summed over the two branches (each halved in the
    "official" form, main_vicreg.py, not in "paper"), plus ``covariance`` times the squared off-diagonal
    covariances over D, summed over the branches. Variances and covariances are unbiased.

    With ``group`` each of its processes holds its own N rows, equally many, and the loss is that of all their rows;
    it is the same on every rank but for rounding. The gradient is the number of ranks times the loss's own (the
    official FullGatherLayer's, main_vicreg.py), so that an average over the ranks, as DistributedDataParallel takes
    it, is the gradient. All ranks must call alike, and meet a new shape at the same step.

    fp64, fp32, bf16 or fp16 ("cuda" and "triton": not fp64); half types are reduced in fp32. Independent of autocast.
    Differentiable any number of times by "reference", else once.

    Raises ``ValueError`` where the embeddings do not fit each other, ``UserError`` for an unknown ``form`` or
    ``impl``, for an ``impl`` that cannot run here, and for ranks of different shapes.
    """
    _check(za_ND, zb_ND)
    weights = Weights(invariance, variance, covariance, _branch_share(form), gamma, eps)
    method = _chosen(impl, za_ND.device.type, za_ND.dtype)
    name = group_name(group)
    if method == REFERENCE:
        with without_autocast(za_ND.device.type):
            return LossTerms(*reference_terms(za_ND, zb_ND, weights, Ranks.named(name).compared(za_ND)))
    return LossTerms(*vicreg_terms(za_ND, zb_ND, weights, method, name))


def several_views_loss(
    views_ND: Sequence[Tensor],
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    form: Form = "official",
    impl: str = "auto",
    gamma: float = 1.0,
    eps: float = 1e-4,
    group: ProcessGroup | None = None,
) -> LossTerms:
    """``vicreg_loss`` of V >= 2 views' embeddings, each (N, D); of two it is that function itself, to the bit.

    The terms of V views are ``invariance`` times the mean over all pairs of the mean squared error, ``variance`` times
    twice the mean over views of the hinge, and ``covariance`` times twice the mean over views of the covariance term:
    a weight so weighs as much for any number of views, and for two this is the paper's loss.

    Variance and covariance are ``impl``'s, two views at a call (``several.spread_pairs``: of an odd number one view is
    computed twice), the distance is ``several.mean_pair_distance``; "reference" is ``reference.several_terms``, pair
    by pair. Arguments, processes, types and errors otherwise as in ``vicreg_loss``.
    """
    if len(views_ND) < 2:
        raise ValueError(f"the loss compares two views or more, got {len(views_ND)}")
    for z_ND in views_ND[1:]:
        _check(views_ND[0], z_ND)

    def of_two(za_ND: Tensor, zb_ND: Tensor, *, distance: float, share: float) -> LossTerms:
        return vicreg_loss(
            za_ND,
            zb_ND,
            invariance=distance,
            variance=variance * share,
            covariance=covariance * share,
            form=form,
            impl=impl,
            gamma=gamma,
            eps=eps,
            group=group,
        )

    if len(views_ND) == 2:
        return of_two(*views_ND, distance=invariance, share=1.0)
    first_ND, name = views_ND[0], group_name(group)
    if _chosen(impl, first_ND.device.type, first_ND.dtype) == REFERENCE:
        weights = Weights(invariance, variance, covariance, _branch_share(form), gamma, eps)
        with without_autocast(first_ND.device.type):
            return LossTerms(*several_terms(views_ND, weights, Ranks.named(name).compared(first_ND)))
    distance = mean_pair_distance(views_ND, name)
    total, hinges, covariances = invariance * distance, [], []
    for one, other, share in spread_pairs(len(views_ND)):
        own = of_two(views_ND[one], views_ND[other], distance=0.0, share=share)
        total = total + own.total
        hinges.append(share * own.variance)
        covariances.append(share * own.covariance)
    return LossTerms(total, distance.detach(), torch.stack(hinges).sum(), torch.stack(covariances).sum())


def _branch_share(form: Form) -> float:
    """``UserError`` for an unknown form."""
    if form not in get_args(Form):
        raise UserError(unknown("loss form", form, get_args(Form)))
    return 0.5 if form == "official" else 1.0


def _chosen(impl: str, device: str, dtype: torch.dtype) -> str:
    return choose(impl, device, dtype).target


# A compiler cannot trace its import and its log line: torch.compiler.assume_constant_result, which does no more, would
# load the compiler here, in a second or two.
_chosen._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


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
