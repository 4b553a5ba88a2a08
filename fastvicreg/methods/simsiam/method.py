"""SimSiam: a predictor on one view's projection is trained to give the other view's, which no gradient reaches.

Shape suffixes: B batch, D projection width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Spread, Terms, by_dimension
from fastvicreg.methods.embeddings import spread_parts, wide
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.momentum import MomentumCopy, rising_momentum
from fastvicreg.methods.regularize import columns_of, regularized
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.views import each_view, expect_two


class Embeddings(NamedTuple):
    """Both views' predictions, and the projections that they were made from."""

    pa_BD: Tensor
    pb_BD: Tensor
    za_BD: Tensor
    zb_BD: Tensor


class SimSiam(nn.Module):
    """As facebookresearch/simsiam's builder.py; each part can be left out, for the rows of VICReg's Table 4."""

    def __init__(self, encoder: Encoder, config: SimSiamConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        super().__init__()
        width, norm = config.projector[-1], config.batch_norm
        self.encoder = encoder
        self.projector = mlp(encoder.features, config.projector, hidden_bias=False, last_bias=not norm, batch_norm=norm)
        if norm:
            self.projector.append(nn.BatchNorm1d(width, affine=False))
        self.predictor: nn.Module = nn.Identity()
        if config.predictor:
            widths = (*config.predictor_hidden, width)
            self.predictor = mlp(width, widths, hidden_bias=False, last_bias=True, batch_norm=norm)
        self.target_encoder = MomentumCopy(self.get_submodule("encoder")) if config.momentum_encoder else None
        self.target_projector = MomentumCopy(self.projector) if config.momentum_encoder else None
        self.config, self.impl = config, impl
        self.columns = (
            Column("similarity", "cos"),
            Column("projection_std", "std", {"healthy": "projection_std_healthy"}),
            *columns_of(config),
        )
        self.process_group: dist.ProcessGroup | None = None
        """Processes whose rows make the batch; None: all of the run's."""

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"encoder": self.get_submodule("encoder")}

    @property
    def spread(self) -> Spread:
        """Unit vectors that point everywhere have a standard deviation of 1/sqrt(D)."""
        config, cause = self.config, ""
        if config.variance:
            cause = ""
        elif not config.stop_gradient:
            cause = "--no-stop-gradient leaves nothing against it: --variance 1 does without one"
        elif not config.predictor:
            cause = "--no-predictor leaves nothing against it: --variance 1 does without one"
        elif not config.batch_norm:
            cause = "--no-batch-norm makes it likely: --variance 1 does without it"
        return Spread("projection_std", config.projector[-1] ** -0.5, cause)

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """``momentum`` of the target network, where there is one."""
        if self.target_encoder is None:
            return {}
        return {"momentum": partial(rising_momentum, start=self.config.momentum, steps=horizon.steps)}

    def embed(self, views: tuple[Tensor, ...]) -> Embeddings:
        """Two views, each (B, C, H, W). ``UserError`` for another number of them."""
        expect_two(views, "SimSiam")
        features = each_view(self.encoder, views)
        za_BD, zb_BD = each_view(self.projector, features)
        pa_BD, pb_BD = each_view(self.predictor, (za_BD, zb_BD))
        return Embeddings(pa_BD, pb_BD, za_BD, zb_BD)

    def target(self, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
        """Both views' projections by the momentum copy, in the views' order; None where there is none."""
        if self.target_encoder is None or self.target_projector is None:
            return None
        features = each_view(self.target_encoder, views)
        ta_BD, tb_BD = each_view(self.target_projector, features)
        return ta_BD, tb_BD

    def loss(self, embeddings: Embeddings, targets: tuple[Tensor, Tensor] | None) -> Terms:
        """Minus the mean of both directions' cosines: -1 where each prediction is the other view's projection."""
        pa_BD, pb_BD, za_BD, zb_BD = embeddings
        ta_BD, tb_BD = targets or (za_BD, zb_BD)
        constant = self.config.stop_gradient
        similarity = (
            mean_cosine(pa_BD, tb_BD, stop_gradient=constant) + mean_cosine(pb_BD, ta_BD, stop_gradient=constant)
        ) / 2
        terms = Terms(-similarity, {"similarity": similarity.detach(), **spread_parts(za_BD, zb_BD)})
        return regularized(terms, self.config, za_BD, zb_BD, impl=self.impl, group=self.process_group)

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """The momentum copy follows, where there is one."""
        if self.target_encoder is not None and self.target_projector is not None:
            self.target_encoder.follow(self.get_submodule("encoder"), scalars["momentum"], finite)
            self.target_projector.follow(self.projector, scalars["momentum"], finite)

    def param_groups(self) -> list[ParamGroup]:
        """The predictor's learning rate is constant (main_simsiam.py, --fix-pred-lr), unless told otherwise."""
        constant = self.config.predictor_constant_lr
        predictor = [group._replace(constant_lr=constant) for group in by_dimension(self.predictor)]
        return [*self.encoder.param_groups(), *by_dimension(self.projector), *predictor]


def mean_cosine(prediction_BD: Tensor, target_BD: Tensor, *, stop_gradient: bool = True) -> Tensor:
    """Mean over the batch of the cosine between rows (eps 1e-8); the target is a constant to the gradient."""
    target_BD = wide(target_BD.detach() if stop_gradient else target_BD)
    return F.cosine_similarity(wide(prediction_BD), target_BD, dim=1).mean()
