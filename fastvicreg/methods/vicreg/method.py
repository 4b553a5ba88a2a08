"""VICReg: an encoder and an expander, and three terms on both views' embeddings.

Shape suffixes: B batch, D embedding width, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Spread, Terms, by_dimension
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss import expected_covariance, known, vicreg_loss
from fastvicreg.methods.heads import expander
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.views import each_view


class Embeddings(NamedTuple):
    """Both views' embeddings, and the first one's features, detached."""

    za_BD: Tensor
    zb_BD: Tensor
    features_BF: Tensor


class VICReg(nn.Module):
    """Paper Algorithm 1; official main_vicreg.py."""

    columns = (
        Column("invariance", "inv"),
        Column("variance", "var"),
        Column(
            "covariance",
            "cov",
            {"independent embeddings": "covariance_independent", "least possible": "covariance_minimum"},
            scale="log",
        ),
        Column("embedding_std", "std"),
    )

    def __init__(self, encoder: Encoder, config: VICRegConfig, *, impl: str = "auto") -> None:
        """``UserError`` where ``impl`` names no implementation of the loss."""
        super().__init__()
        known(impl)
        self.encoder = encoder
        self.expander = expander(encoder.features, config.expander)
        self.config = config
        self.impl = impl
        self.process_group: dist.ProcessGroup | None = None
        """Processes whose rows make the batch; None: all of the run's."""

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"encoder": self.get_submodule("encoder")}

    @property
    def spread(self) -> Spread:
        """The variance term pulls every dimension's standard deviation to 1 (paper: gamma)."""
        variance, invariance, cause = self.config.variance, self.config.invariance, ""
        if variance <= 0:
            cause = f"--variance {variance:g} leaves nothing against it, --variance 25 is the published weight"
        elif variance < invariance:
            cause = f"--variance {variance:g} is weaker than --invariance {invariance:g}: give both the same weight"
        return Spread("embedding_std", 1.0, cause)

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """The learning rate is all that varies."""
        return {}

    def embed(self, views: tuple[Tensor, ...]) -> Embeddings:
        """Two views, each (B, C, H, W). ``UserError`` for another number of them."""
        if len(views) != 2:
            raise UserError(f"VICReg takes 2 views, not {len(views)}: choose a recipe of two.")
        # Each view has batch statistics of its own, as in the official code.
        features = each_view(self.encoder, views)
        za_BD, zb_BD = each_view(self.expander, features)
        return Embeddings(za_BD, zb_BD, features[0].detach())

    def target(self, views: tuple[Tensor, ...]) -> None:
        """Both branches are trained: there is no target network."""

    def loss(self, embeddings: Embeddings, targets: None) -> Terms:
        """The weighted sum of the three terms.

        Beside the loss's own terms ``parts`` holds what tells a healthy run from a collapsing one:
        ``embedding_std`` and ``representation_std``, the mean over dimensions of the standard deviation over the
        batch, and the covariance term's value for independent embeddings and its true minimum, both at the
        embeddings' measured variances. Among several processes the loss's terms are the global batch's; the
        deviations and variances of the others are of this process's own samples.
        """
        config = self.config
        loss = vicreg_loss(
            embeddings.za_BD,
            embeddings.zb_BD,
            invariance=config.invariance,
            variance=config.variance,
            covariance=config.covariance,
            form=config.loss_form,
            impl=self.impl,
            group=self.process_group or (dist.group.WORLD if _processes() > 1 else None),
        )
        parts = {"invariance": loss.invariance, "variance": loss.variance, "covariance": loss.covariance}
        return Terms(loss.total, parts | _health(embeddings))

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """There is no target network to move."""

    def param_groups(self) -> list[ParamGroup]:
        return [*self.encoder.param_groups(), *by_dimension(self.expander)]


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def _health(embeddings: Embeddings) -> dict[str, Tensor]:
    za_BD, zb_BD, features_BF = embeddings
    var_a_D, var_b_D = za_BD.float().var(0), zb_BD.float().var(0)
    independent, minimum = expected_covariance(len(za_BD) * _processes(), var_a_D, var_b_D)
    return {
        "covariance_independent": independent,
        "covariance_minimum": minimum,
        "embedding_std": (var_a_D.sqrt().mean() + var_b_D.sqrt().mean()) / 2,
        "representation_std": features_BF.float().std(0).mean(),
    }
