"""BYOL: a predictor on the online projection is trained to give the target network's projection of the other view.

Shape suffixes: B batch, D projection width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Spread, Terms, by_dimension
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.heads import expander
from fastvicreg.methods.momentum import MomentumCopy
from fastvicreg.methods.views import each_view


class Embeddings(NamedTuple):
    """Both views' predictions, and the projections that they were made from, detached."""

    pa_BD: Tensor
    pb_BD: Tensor
    za_BD: Tensor
    zb_BD: Tensor


class BYOL(nn.Module):
    """As deepmind-research's byol_experiment.py, but that the target begins as a copy of the online network."""

    columns = (
        Column("prediction", "pred"),
        Column("projection_std", "std", {"healthy": "projection_std_healthy"}),
    )

    def __init__(self, encoder: Encoder, config: BYOLConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = expander(encoder.features, config.projector)
        width = config.projector[-1]
        self.predictor = expander(width, (*config.predictor, width))
        self.target_encoder = MomentumCopy(self.get_submodule("encoder"))
        self.target_projector = MomentumCopy(self.projector)
        self.config = config

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"encoder": self.get_submodule("encoder")}

    @property
    def spread(self) -> Spread:
        """Unit vectors that point everywhere have a standard deviation of 1/sqrt(D)."""
        momentum, cause = self.config.momentum, ""
        if momentum < 0.9:
            cause = f"--momentum {momentum:g} lets the target run after its follower: .97 to .996 is published"
        return Spread("projection_std", self.config.projector[-1] ** -0.5, cause)

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """``momentum`` of the target network, from its start to 1 (byol/utils/schedules.py, target_ema)."""
        return {"momentum": partial(rising_momentum, start=self.config.momentum, steps=horizon.steps)}

    def embed(self, views: tuple[Tensor, ...]) -> Embeddings:
        """Two views, each (B, C, H, W). ``ValueError`` for another number of them."""
        if len(views) != 2:
            raise ValueError(f"BYOL takes 2 views, not {len(views)}: choose a recipe of two.")
        za_BD, zb_BD = each_view(self.projector, each_view(self.encoder, views))
        pa_BD, pb_BD = each_view(self.predictor, (za_BD, zb_BD))
        return Embeddings(pa_BD, pb_BD, za_BD.detach(), zb_BD.detach())

    def target(self, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Both views' projections by the target network, in the views' order."""
        ta_BD, tb_BD = each_view(self.target_projector, each_view(self.target_encoder, views))
        return ta_BD, tb_BD

    def loss(self, embeddings: Embeddings, targets: tuple[Tensor, Tensor]) -> Terms:
        """Squared distance of unit vectors, each view's prediction to the other's target: summed, 0 to 8."""
        (pa_BD, pb_BD, za_BD, zb_BD), (ta_BD, tb_BD) = embeddings, targets
        total = byol_loss(pa_BD, tb_BD) + byol_loss(pb_BD, ta_BD)
        std = (unit_std(za_BD) + unit_std(zb_BD)) / 2
        healthy = torch.full_like(std, za_BD.shape[1] ** -0.5)
        return Terms(total, {"prediction": total.detach(), "projection_std": std, "projection_std_healthy": healthy})

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """The target network follows, by ``scalars["momentum"]``."""
        self.target_encoder.follow(self.get_submodule("encoder"), scalars["momentum"], finite)
        self.target_projector.follow(self.projector, scalars["momentum"], finite)

    def param_groups(self) -> list[ParamGroup]:
        return [*self.encoder.param_groups(), *by_dimension(self.projector), *by_dimension(self.predictor)]


def byol_loss(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Mean over the batch of ``|n(p) - n(t)|^2`` for unit vectors ``n``; no gradient reaches ``target_BD``."""
    p_BD = F.normalize(prediction_BD.float() if prediction_BD.dtype != torch.float64 else prediction_BD, dim=1)
    t_BD = F.normalize(target_BD.detach().to(p_BD.dtype), dim=1)
    return (p_BD - t_BD).square().sum(1).mean()


@torch.no_grad()
def unit_std(z_BD: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of unit vectors: 1/sqrt(D) where they spread, 0 on collapse."""
    return F.normalize(z_BD.float(), dim=1).std(0).mean()


def rising_momentum(step: int, *, start: float, steps: int) -> float:
    """1 - (1 - start) (1 + cos(pi step / steps)) / 2."""
    return 1.0 - (1.0 - start) * (1.0 + math.cos(math.pi * step / steps)) / 2.0
