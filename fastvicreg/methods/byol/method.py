"""BYOL: a predictor on the online projection is trained to give the target network's projection of the other view.

Shape suffixes: B batch, D projection width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Spread, Terms, by_dimension
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.embeddings import spread_parts, unit
from fastvicreg.methods.heads import expander
from fastvicreg.methods.momentum import MomentumCopy, rising_momentum
from fastvicreg.methods.regularize import columns_of, regularized
from fastvicreg.methods.views import each_view, expect_two


class Embeddings(NamedTuple):
    """Both views' predictions, and the projections that they were made from."""

    pa_BD: Tensor
    pb_BD: Tensor
    za_BD: Tensor
    zb_BD: Tensor


class BYOL(nn.Module):
    """As deepmind-research's byol_experiment.py, but that the target begins as a copy of the online network.

    Each part of it can be left out, for the rows of VICReg's Table 4: without momentum encoder the targets are the
    online projections of the other view, without predictor the projection itself is the prediction.
    """

    def __init__(self, encoder: Encoder, config: BYOLConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        super().__init__()
        self.encoder = encoder
        self.projector = expander(encoder.features, config.projector, batch_norm=config.batch_norm)
        width = config.projector[-1]
        self.predictor: nn.Module = nn.Identity()
        if config.predictor:
            self.predictor = expander(width, (*config.predictor_hidden, width), batch_norm=config.batch_norm)
        self.target_encoder = MomentumCopy(self.get_submodule("encoder")) if config.momentum_encoder else None
        self.target_projector = MomentumCopy(self.projector) if config.momentum_encoder else None
        self.config, self.impl = config, impl
        self.columns = (
            Column("prediction", "pred"),
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
        if not config.predictor and not config.variance:
            cause = "--no-predictor leaves nothing against it: --variance 1 does without one"
        elif config.momentum_encoder and config.momentum < 0.9:
            cause = f"--momentum {config.momentum:g} lets the target run after its follower: .97 to .996 is published"
        elif not config.stop_gradient and not config.variance:
            cause = "--no-stop-gradient leaves nothing against it: --variance 1 does without one"
        return Spread("projection_std", config.projector[-1] ** -0.5, cause)

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """``momentum`` of the target network, from its start to 1 (byol/utils/schedules.py, target_ema)."""
        if self.target_encoder is None:
            return {}
        return {"momentum": partial(rising_momentum, start=self.config.momentum, steps=horizon.steps)}

    def embed(self, views: tuple[Tensor, ...]) -> Embeddings:
        """Two views, each (B, C, H, W). ``UserError`` for another number of them."""
        expect_two(views, "BYOL")
        za_BD, zb_BD = each_view(self.projector, each_view(self.encoder, views))
        pa_BD, pb_BD = each_view(self.predictor, (za_BD, zb_BD))
        return Embeddings(pa_BD, pb_BD, za_BD, zb_BD)

    def target(self, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
        """Both views' projections by the target network, in the views' order; None where there is none."""
        if self.target_encoder is None or self.target_projector is None:
            return None
        ta_BD, tb_BD = each_view(self.target_projector, each_view(self.target_encoder, views))
        return ta_BD, tb_BD

    def loss(self, embeddings: Embeddings, targets: tuple[Tensor, Tensor] | None) -> Terms:
        """Squared distance of unit vectors, each view's prediction to the other's target: summed, 0 to 8."""
        config = self.config
        pa_BD, pb_BD, za_BD, zb_BD = embeddings
        ta_BD, tb_BD = targets or (za_BD, zb_BD)
        total = byol_loss(pa_BD, tb_BD, stop_gradient=config.stop_gradient)
        total = total + byol_loss(pb_BD, ta_BD, stop_gradient=config.stop_gradient)
        terms = Terms(total, {"prediction": total.detach(), **spread_parts(za_BD, zb_BD)})
        return regularized(terms, config, za_BD, zb_BD, impl=self.impl, group=self.process_group)

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """The target network follows, by ``scalars["momentum"]``."""
        if self.target_encoder is not None and self.target_projector is not None:
            self.target_encoder.follow(self.get_submodule("encoder"), scalars["momentum"], finite)
            self.target_projector.follow(self.projector, scalars["momentum"], finite)

    def param_groups(self) -> list[ParamGroup]:
        return [*self.encoder.param_groups(), *by_dimension(self.projector), *by_dimension(self.predictor)]


def byol_loss(prediction_BD: Tensor, target_BD: Tensor, *, stop_gradient: bool = True) -> Tensor:
    """Mean over the batch of ``|n(p) - n(t)|^2`` for unit vectors ``n``; the target is a constant to the gradient."""
    p_BD, t_BD = unit(prediction_BD), unit(target_BD.detach() if stop_gradient else target_BD)
    return (p_BD - t_BD).square().sum(1).mean()
