"""VICReg: an encoder and an expander, and three terms on both views' embeddings.

Shape suffixes: B batch, D embedding width, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Spread, Terms, by_dimension
from fastvicreg.kernels.loss import expected_covariance, known, vicreg_loss
from fastvicreg.methods.embeddings import batch_group, kept_sides, processes, wide
from fastvicreg.methods.heads import expander
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.views import each_branch, each_view, expect_two


class Embeddings(NamedTuple):
    """Both views' embeddings, the first one's features, detached, and the predictions where there is a predictor."""

    za_BD: Tensor
    zb_BD: Tensor
    features_BF: Tensor
    predictions: tuple[Tensor, ...] = ()


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
        self.expander = expander(encoder.features, config.expander, batch_norm=config.batch_norm)
        width = config.expander[-1]
        self.predictor: nn.Module | None = None
        if config.predictor:
            self.predictor = expander(width, (width, width), batch_norm=config.batch_norm)
        self.encoder_b: nn.Module | None = None
        self.expander_b: nn.Module | None = None
        self.config = config
        self.impl = impl
        self.process_group: dist.ProcessGroup | None = None
        """Processes whose rows make the batch; None: all of the run's."""
        self.sides: dict[str, Tensor] = {}

    def add_branch(self, encoder: Encoder) -> None:
        """View 2 goes through ``encoder`` and an expander of its own, from here on (paper section 6.3, Table 5).

        After the first branch, whose weights so begin as they do without a second.
        """
        config = self.config
        widths = config.widths_b("--expander", config.expander)
        self.encoder_b = cast(nn.Module, encoder)
        self.expander_b = expander(encoder.features, widths, batch_norm=config.batch_norm)

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {name: self.get_submodule(name) for name in ("encoder", "encoder_b") if getattr(self, name) is not None}

    @property
    def head(self) -> nn.Module:
        return self.expander

    @property
    def head_b(self) -> nn.Module | None:
        """The second branch's, where there is one."""
        return self.expander_b

    @property
    def spread(self) -> Spread:
        return spread_of(self.config.invariance, self.config.variance, self.config.covariance)

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """The learning rate is all that varies."""
        return {}

    def embed(self, views: tuple[Tensor, ...]) -> Embeddings:
        """Two views, each (B, C, H, W). ``UserError`` for another number of them."""
        expect_two(views, "VICReg")
        # Each view has batch statistics of its own, as in the official code.
        features = each_branch(self.get_submodule("encoder"), self.encoder_b, views)
        za_BD, zb_BD = each_branch(self.expander, self.expander_b, features)
        predictions: tuple[Tensor, ...] = ()
        if self.predictor is not None:
            predictions = tuple(each_view(self.predictor, (za_BD, zb_BD)))
        return Embeddings(za_BD, zb_BD, features[0].detach(), predictions)

    def target(self, views: tuple[Tensor, ...]) -> None:
        """Both branches are trained: there is no target network."""

    def loss(self, embeddings: Embeddings, targets: None) -> Terms:
        """The weighted sum of the three terms; with a predictor the invariance is ``predicted_distance``.

        Beside the loss's own terms ``parts`` holds what tells a healthy run from a collapsing one:
        ``embedding_std`` and ``representation_std``, the mean over dimensions of the standard deviation over the
        batch, and the covariance term's value for independent embeddings and its true minimum, both at the
        embeddings' measured variances. Among several processes the loss's terms are the global batch's; the
        deviations and variances of the others are of this process's own samples.
        """
        config = self.config
        self.sides = kept_sides(a=embeddings.za_BD, b=embeddings.zb_BD)
        predicted = bool(embeddings.predictions)
        loss = vicreg_loss(
            embeddings.za_BD,
            embeddings.zb_BD,
            invariance=0.0 if predicted else config.invariance,
            variance=config.variance,
            covariance=config.covariance,
            form=config.loss_form,
            impl=self.impl,
            group=batch_group(self.process_group),
        )
        total, invariance = loss.total, loss.invariance
        if embeddings.predictions:
            pa_BD, pb_BD = embeddings.predictions
            distance = predicted_distance(pa_BD, pb_BD, embeddings.za_BD, embeddings.zb_BD)
            total, invariance = total + config.invariance * distance, distance.detach()
        parts = {"invariance": invariance, "variance": loss.variance, "covariance": loss.covariance}
        return Terms(total, parts | _health(embeddings))

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """There is no target network to move."""

    def param_groups(self) -> list[ParamGroup]:
        encoders = [self.encoder] if self.encoder_b is None else [self.encoder, cast(Encoder, self.encoder_b)]
        heads = [head for head in (self.expander, self.predictor, self.expander_b) if head is not None]
        groups = [group for encoder in encoders for group in encoder.param_groups()]
        return [*groups, *(group for head in heads for group in by_dimension(head))]


def spread_of(invariance: float, variance: float, covariance: float) -> Spread:
    """The variance term pulls every dimension's standard deviation to 1 (paper: gamma); the arguments are weights."""
    cause = ""
    if variance <= 0:
        cause = f"--variance {variance:g} leaves nothing against it, --variance 25 is the published weight"
    elif variance < invariance:
        cause = f"--variance {variance:g} is weaker than --invariance {invariance:g}: give both the same weight"
    line = cause
    if not cause and covariance <= 0:
        line = f"--covariance {covariance:g} leaves dimensions alike, --covariance 1 is the published weight"
    return Spread("embedding_std", 1.0, cause, line, raw=True)


def predicted_distance(pa_BD: Tensor, pb_BD: Tensor, za_BD: Tensor, zb_BD: Tensor) -> Tensor:
    """Half of each direction's mean squared error of prediction and the other view's embedding (paper eq. 8).

    No gradient is stopped. Of this process's own samples, as the official invariance.
    """
    return (F.mse_loss(wide(pa_BD), wide(zb_BD)) + F.mse_loss(wide(pb_BD), wide(za_BD))) / 2


@torch.no_grad()
def _health(embeddings: Embeddings) -> dict[str, Tensor]:
    za_BD, zb_BD, features_BF, _ = embeddings
    var_a_D, var_b_D = za_BD.float().var(0), zb_BD.float().var(0)
    independent, minimum = expected_covariance(len(za_BD) * processes(), var_a_D, var_b_D)
    return {
        "covariance_independent": independent,
        "covariance_minimum": minimum,
        "embedding_std": (var_a_D.sqrt().mean() + var_b_D.sqrt().mean()) / 2,
        "representation_std": features_BF.float().std(0).mean(),
    }
