"""VICReg: an encoder and an expander, and three terms on the embeddings of two views or more.

Shape suffixes: B batch, D embedding width, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import permutations
from operator import add
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Spread, Terms, by_dimension
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss import expected_covariance, known, several_views_loss
from fastvicreg.methods.embeddings import batch_group, kept_sides, of_all_processes, processes, wide
from fastvicreg.methods.heads import expander
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.views import each_branch, each_view, expect_two


class Embeddings(NamedTuple):
    """The views' embeddings, the first one's features, detached, and the predictions where there is a predictor."""

    views_BD: tuple[Tensor, ...]
    features_BF: Tensor
    predictions: tuple[Tensor, ...] = ()


class VICReg(nn.Module):
    """Paper Algorithm 1; official main_vicreg.py.

    Of more than two views, which neither has, invariance is the mean over all pairs of them, and variance and
    covariance are twice the means over views, as of two: see ``several_views_loss``.
    """

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
        """Two views or more, each (B, C, H, W) of any size; two where each has a branch. ``UserError`` for others."""
        if self.encoder_b is not None:
            expect_two(views, "VICReg with --branch-b")
        elif len(views) < 2:
            raise UserError(f"VICReg takes 2 views or more, not {len(views)}: choose another --recipe.")
        # Each view has batch statistics of its own, as in the official code.
        features = each_branch(self.get_submodule("encoder"), self.encoder_b, views)
        views_BD = tuple(each_branch(self.expander, self.expander_b, features))
        predictions: tuple[Tensor, ...] = ()
        if self.predictor is not None:
            predictions = tuple(each_view(self.predictor, views_BD))
        return Embeddings(views_BD, features[0].detach(), predictions)

    def target(self, views: tuple[Tensor, ...]) -> None:
        """Both branches are trained: there is no target network."""

    def loss(self, embeddings: Embeddings, targets: None) -> Terms:
        """The weighted sum of the three terms; with a predictor the invariance is ``predicted_distance``.

        Beside the loss's own terms ``parts`` holds what tells a healthy run from a collapsing one:
        ``embedding_std`` and ``representation_std``, the mean over dimensions of the standard deviation over the
        batch, and the covariance term's value for independent embeddings and its true minimum, both at the
        embeddings' measured variances. Among several processes the loss's terms are the global batch's; the
        deviations and variances of the others are of this process's own samples. ``sides`` are the first two views.
        """
        config, views_BD = self.config, embeddings.views_BD
        self.sides = kept_sides(a=views_BD[0], b=views_BD[1])
        predicted = bool(embeddings.predictions)
        loss = several_views_loss(
            views_BD,
            invariance=0.0 if predicted else config.invariance,
            variance=config.variance,
            covariance=config.covariance,
            form=config.loss_form,
            impl=self.impl,
            group=batch_group(self.process_group),
        )
        total, invariance = loss.total, loss.invariance
        if embeddings.predictions:
            distance = predicted_distance(embeddings.predictions, views_BD)
            distance, _ = of_all_processes(distance, {}, self.process_group)
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


def predicted_distance(predicted_BD: Sequence[Tensor], views_BD: Sequence[Tensor]) -> Tensor:
    """Mean over ordered pairs of the squared error of a view's prediction and another view's embedding (paper eq. 8).

    No gradient is stopped. Of this process's own samples, as the official invariance.
    """
    predicted_BD, views_BD = [wide(p_BD) for p_BD in predicted_BD], [wide(z_BD) for z_BD in views_BD]
    errors = [F.mse_loss(predicted_BD[one], views_BD[other]) for one, other in permutations(range(len(views_BD)), 2)]
    return reduce(add, errors) / len(errors)


@torch.no_grad()
def _health(embeddings: Embeddings) -> dict[str, Tensor]:
    views_BD, features_BF, _ = embeddings
    variances_D = [z_BD.float().var(0) for z_BD in views_BD]
    independent, minimum = expected_covariance(len(views_BD[0]) * processes(), *variances_D)
    return {
        "covariance_independent": independent,
        "covariance_minimum": minimum,
        "embedding_std": reduce(add, [var_D.sqrt().mean() for var_D in variances_D]) / len(variances_D),
        "representation_std": features_BF.float().std(0).mean(),
    }
