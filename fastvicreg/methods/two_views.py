"""What methods of an encoder and a projector on two views do alike; each adds its loss, and what it does otherwise.

Shape suffixes: B batch, D projection width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import torch.distributed as dist
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Spread, Terms, by_dimension
from fastvicreg.methods.embeddings import kept_sides, of_all_processes, spread_parts
from fastvicreg.methods.momentum import MomentumCopy, rising_momentum
from fastvicreg.methods.regularize import columns_of, line_cause, regularized
from fastvicreg.methods.views import each_branch, each_view, expect_two


class Projections(NamedTuple):
    """Both views' projections."""

    za_BD: Tensor
    zb_BD: Tensor


class Predictions(NamedTuple):
    """Both views' predictions, and the projections that they were made from."""

    pa_BD: Tensor
    pb_BD: Tensor
    za_BD: Tensor
    zb_BD: Tensor


class TwoViews(nn.Module):
    """An encoder and a projector, both trained; VICReg's terms beside the loss where the settings give them weight."""

    title: ClassVar[str]
    """What the method is called in a message."""

    def __init__(
        self, encoder: Encoder, projector: nn.Sequential, config: Any, *columns: Column, impl: str = "auto"
    ) -> None:
        """``config`` is a ``Regularized``, ``columns`` are of the method's own parts, ``impl`` names a loss kernel."""
        super().__init__()
        self.encoder, self.projector = encoder, projector
        self.encoder_b: nn.Module | None = None
        self.projector_b: nn.Module | None = None
        self.config, self.impl = config, impl
        own = Column("projection_std", "std", {"healthy": "projection_std_healthy"})
        self.columns = (*columns, own, *columns_of(config))
        self.process_group: dist.ProcessGroup | None = None
        """Processes whose rows make the batch; None: all of the run's."""
        self.sides: dict[str, Tensor] = {}

    @staticmethod
    def new_projector(features: int, widths: tuple[int, ...], config: Any) -> nn.Sequential:
        """The method's projector with fresh weights, for a method that takes a second branch."""
        raise NotImplementedError

    def add_branch(self, encoder: Encoder) -> None:
        """View 2 goes through ``encoder`` and a projector of its own, from here on; its config is a ``Branched``.

        After the first branch, whose weights so begin as they do without a second.
        """
        widths = self.config.widths_b("--projector", self.config.projector)
        self.encoder_b = cast(nn.Module, encoder)
        self.projector_b = self.new_projector(encoder.features, widths, self.config)

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {name: self.get_submodule(name) for name in ("encoder", "encoder_b") if getattr(self, name) is not None}

    @property
    def head(self) -> nn.Module:
        return self.projector

    @property
    def head_b(self) -> nn.Module | None:
        """The second branch's, where there is one."""
        return self.projector_b

    @property
    def spread(self) -> Spread:
        """Of the projections: unit vectors that point everywhere have a standard deviation of 1/sqrt(D)."""
        cause = self.likely_cause()
        return Spread("projection_std", self.config.projector[-1] ** -0.5, cause, cause or line_cause(self.config))

    def likely_cause(self) -> str:
        """What a collapse most likely comes from, and the flag that helps; "": the learning rate."""
        return ""

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """The learning rate is all that varies."""
        return {}

    def embed(self, views: tuple[Tensor, ...]) -> Any:
        """Two views, each (B, C, H, W), to ``Projections``. ``UserError`` for another number of them."""
        expect_two(views, self.title)
        features = each_branch(self.get_submodule("encoder"), self.encoder_b, views)
        return Projections(*each_branch(self.projector, self.projector_b, features))

    def target(self, views: tuple[Tensor, ...]) -> Any:
        """Both branches are trained: there is no target network."""

    def terms(
        self,
        total: Tensor,
        parts: dict[str, Tensor],
        za_BD: Tensor,
        zb_BD: Tensor,
        targets: tuple[Tensor, ...] | None = None,
    ) -> Terms:
        """A loss and its parts, with the projections' spread and VICReg's terms on them added.

        ``total`` and ``parts`` are means over this process's rows, or of the whole batch; told are the whole batch's.
        ``targets`` are a momentum network's projections, where there is one.
        """
        self.sides = kept_sides(online=za_BD, target=targets[0]) if targets else kept_sides(a=za_BD, b=zb_BD)
        total, parts = of_all_processes(total, parts, self.process_group)
        whole = Terms(total, {**parts, **spread_parts(za_BD, zb_BD)})
        return regularized(whole, self.config, za_BD, zb_BD, impl=self.impl, group=self.process_group)

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """There is no target network to move."""

    def param_groups(self) -> list[ParamGroup]:
        own = [*self.encoder.param_groups(), *by_dimension(self.projector)]
        if self.encoder_b is None or self.projector_b is None:
            return own
        return [*own, *cast(Encoder, self.encoder_b).param_groups(), *by_dimension(self.projector_b)]


class Followed(TwoViews):
    """With momentum copies of encoder and projector for targets, where there are any."""

    def __init__(
        self, encoder: Encoder, projector: nn.Sequential, config: Any, *columns: Column, impl: str = "auto"
    ) -> None:
        super().__init__(encoder, projector, config, *columns, impl=impl)
        self.target_encoder: MomentumCopy | None = None
        self.target_projector: MomentumCopy | None = None

    def follow_by_momentum(self) -> None:
        """Make the copies, which begin as the networks are now."""
        self.target_encoder = MomentumCopy(self.get_submodule("encoder"))
        self.target_projector = MomentumCopy(self.projector)

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """``momentum`` of the copies, where there are any (byol/utils/schedules.py, target_ema)."""
        if self.target_encoder is None:
            return {}
        return {"momentum": partial(rising_momentum, start=self.config.momentum, steps=horizon.steps)}

    def target(self, views: tuple[Tensor, ...]) -> Any:
        """The copies' projections of these views, in their order; None where there are no copies."""
        if self.target_encoder is None or self.target_projector is None:
            return None
        return tuple(each_view(self.target_projector, each_view(self.target_encoder, views)))

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """The copies follow, by ``scalars["momentum"]``."""
        if self.target_encoder is not None and self.target_projector is not None:
            self.target_encoder.follow(self.get_submodule("encoder"), scalars["momentum"], finite)
            self.target_projector.follow(self.projector, scalars["momentum"], finite)


class Predicting(Followed):
    """With a predictor on the projections, which is trained to give the other view's target."""

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Sequential,
        predictor: nn.Module,
        config: Any,
        *columns: Column,
        impl: str = "auto",
    ) -> None:
        """``predictor`` is an identity where there is none."""
        super().__init__(encoder, projector, config, *columns, impl=impl)
        self.predictor = predictor
        if config.momentum_encoder:
            self.follow_by_momentum()

    def embed(self, views: tuple[Tensor, ...]) -> Predictions:
        """Two views, each (B, C, H, W). ``UserError`` for another number of them."""
        za_BD, zb_BD = super().embed(views)
        pa_BD, pb_BD = each_view(self.predictor, (za_BD, zb_BD))
        return Predictions(pa_BD, pb_BD, za_BD, zb_BD)

    def param_groups(self) -> list[ParamGroup]:
        return [*super().param_groups(), *by_dimension(self.predictor)]
