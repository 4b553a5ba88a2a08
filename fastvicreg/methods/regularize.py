"""VICReg's variance and covariance terms beside the loss of another method (paper section 6, Table 4).

Shape suffixes: B batch, D projection width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastvicreg.contracts import Column, Terms
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.methods.embeddings import batch_group, unit, wide
from fastvicreg.methods.settings import Regularized


def columns_of(config: Regularized) -> tuple[Column, ...]:
    """What the terms add to a method's columns: nothing where they have no weight."""
    if not config.is_regularized:
        return ()
    return (
        Column("variance", "var"),
        Column("covariance", "cov", scale="log"),
        Column("projection_rank", "rank"),
    )


def line_cause(config: Regularized) -> str:
    """What embeddings along one line most likely come from, and the flag that helps; "": the learning rate."""
    if config.regularize == "raw":
        return "--regularize raw lets them grow along it: --regularize normalized prevents that"
    if not config.is_regularized:
        return "--variance 1 --covariance 0.01 spread them over more dimensions"
    return "" if config.covariance else "--covariance 0.01 spreads them over more dimensions"


def regularized(
    terms: Terms,
    config: Regularized,
    za_BD: Tensor,
    zb_BD: Tensor,
    *,
    impl: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> Terms:
    """``terms`` with ``config``'s weighted variance and covariance of both online views' projections added.

    Of the projections, never the predictor's output, which the paper found to be worse. Both terms are
    ``vicreg_loss``'s over the whole batch of all processes, the hinges of the two views summed and not halved (the
    paper's equation 6). ``config.regularize`` says of what: the paper does not.

    - "raw": of the projections. A loss that does not see their length (every cosine, batch norm's output) lets them
      meet the hinge by growing along one direction: a standard deviation above 1 at rank 1.
    - "normalized": of sqrt(D) z / ||z||, against the same gamma 1 and eps 1e-4. On the sphere the mean standard
      deviation is at most 1, where they spread evenly. This is paper D.5's gamma of 1/sqrt(D) for unit vectors,
      sqrt(D) times stronger, and with an eps that stays small beside gamma: of unit vectors as they are, eps 1e-4
      alone gives sqrt(1e-4) = .01, above gamma from D = 10,000 on, where the hinge is dead at full collapse.

    ``parts`` gain ``variance`` and ``covariance``, and ``projection_rank``: (sum of variances)^2 over the sum of all
    squared covariances, 1 (a line) to D; its variances are of this process's own samples.
    """
    if not config.is_regularized:
        return terms
    seen_a_BD, seen_b_BD = (_seen(z_BD, config) for z_BD in (za_BD, zb_BD))
    loss = vicreg_loss(
        seen_a_BD,
        seen_b_BD,
        invariance=0.0,
        variance=config.variance,
        covariance=config.covariance,
        form="paper",
        impl=impl,
        group=batch_group(group),
    )
    rank = _participation(loss.covariance, seen_a_BD, seen_b_BD)
    own = {"variance": loss.variance, "covariance": loss.covariance, "projection_rank": rank}
    return Terms(terms.total + loss.total, {**terms.parts, **own})


def _seen(z_BD: Tensor, config: Regularized) -> Tensor:
    return unit(z_BD) * z_BD.shape[1] ** 0.5 if config.regularize == "normalized" else wide(z_BD)


@torch.no_grad()
def _participation(covariance: Tensor, za_BD: Tensor, zb_BD: Tensor) -> Tensor:
    """The effective rank by which ``covariance``, the loss's term, is that of the two views together."""
    var_2D = torch.stack((za_BD.var(0), zb_BD.var(0)))
    off_diagonal = covariance * za_BD.shape[1]
    return var_2D.sum(1).square().sum() / (off_diagonal + var_2D.square().sum()).clamp_min(1e-12)
