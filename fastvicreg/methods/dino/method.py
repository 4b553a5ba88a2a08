"""DINO: each view predicts a momentum network's distribution over prototypes, which is centered and sharpened.

Shape suffixes: B this process's batch, D projection width, P prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Terms, by_dimension
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss.operators import without_autocast
from fastvicreg.methods.dino.config import DINOConfig
from fastvicreg.methods.embeddings import batch_ranks, unit
from fastvicreg.methods.momentum import MomentumCopy
from fastvicreg.methods.settings import check_frozen
from fastvicreg.methods.two_views import Followed
from fastvicreg.methods.views import each_view

TEACHING = 2
"""Views, the first, that the momentum network sees (main_dino.py: the two global crops)."""
STD = 0.02
"""Of the projector's initial weights."""


class DINO(Followed):
    """As facebookresearch/dino's main_dino.py with ``norm_last_layer``, small crops included.

    Batch norm takes each view's statistics by themselves, the released code those of all crops of a size together. The
    momentum network's temperature rises with every update, there once an epoch.
    """

    title = "DINO"
    updates: Tensor
    center_P: Tensor

    def __init__(self, encoder: Encoder, config: DINOConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        projector = gelu_mlp(encoder.features, config.projector, batch_norm=config.batch_norm)
        uniform = Column("teacher_entropy", "entropy", {"uniform": "entropy_uniform"})
        super().__init__(encoder, projector, config, Column("distillation", "dino"), uniform, impl=impl)
        self.prototypes = Prototypes(config.projector[-1], config.prototypes)
        self.follow_by_momentum()
        self.target_prototypes = MomentumCopy(self.prototypes)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("center_P", torch.zeros(config.prototypes))
        self._new_center_P: Tensor | None = None
        """Of the last step, over all processes: it enters only once the update took place."""

    def likely_cause(self) -> str:
        config = self.config
        if config.teacher_temperature >= config.temperature:
            return (
                f"--teacher-temperature {config.teacher_temperature:g} is not below --temperature "
                f"{config.temperature:g}, so that nothing is sharpened: .04 and .1 are published"
            )
        if config.center_momentum > 0.99:
            return f"--center-momentum {config.center_momentum:g} hardly centers: .9 is published"
        if config.momentum < 0.9:
            return f"--momentum {config.momentum:g} lets the target run after its follower: .996 is published"
        return ""

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """The momentum copies'. ``UserError`` for prototypes that are frozen in all of the run."""
        check_frozen(self.config.freeze_prototypes, horizon.steps)
        return super().schedules(horizon)

    def check_length(self, horizon: Horizon) -> None:
        """``UserError`` for a temperature that never gets to its value."""
        if (warmup := self.config.teacher_warmup) > horizon.steps:
            raise UserError(
                f"--teacher-warmup {warmup} is longer than the run of {horizon.steps} steps, which never gets to "
                f"--teacher-temperature {self.config.teacher_temperature}: give fewer updates, or train for longer."
            )

    def embed(self, views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Two views or more, each (B, C, H, W) of any size, to projections (B, D). ``UserError`` for fewer."""
        if len(views) < TEACHING:
            raise UserError(f"DINO takes 2 views or more, not {len(views)}: choose another --recipe.")
        return tuple(each_view(self.projector, each_view(self.encoder, views)))

    def target(self, views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The momentum network's projections of the first two views."""
        return super().target(views[:TEACHING])

    def loss(self, embeddings: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Terms:
        """``distillation`` of the momentum network's distributions; the new center waits for ``after_update``.

        ``teacher_entropy`` is the mean entropy of these distributions: ln P where they are uniform, 0 where one
        prototype has all, which centering and sharpening each prevent.
        """
        config, ranks = self.config, batch_ranks(self.process_group)
        with without_autocast(embeddings[0].device.type):
            # The gradient of the first updates is dropped; the value is the weight's in any case.
            learns = self.updates >= config.freeze_prototypes
            cosines = [self.prototypes(z_BD, learns) for z_BD in embeddings]
            with torch.no_grad():
                taught = [self.target_prototypes(t_BD) for t_BD in targets]
                center_P = self.center_P.to(taught[0].dtype)
                teachers = [((t_BP - center_P) / self._teacher_temperature()).softmax(1) for t_BP in taught]
                # Among several processes each has as many rows.
                self._new_center_P = ranks.add(torch.cat(taught).mean(0)) / ranks.size
                entropy = -torch.stack([(q_BP * q_BP.clamp_min(1e-30).log()).sum(1).mean() for q_BP in teachers]).mean()
            total = distillation(cosines, teachers, config.temperature)
        uniform = torch.full_like(entropy, config.prototypes).log()
        parts = {"distillation": total.detach(), "teacher_entropy": entropy, "entropy_uniform": uniform}
        return self.terms(total, parts, embeddings[0], embeddings[1], targets)

    def _teacher_temperature(self) -> Tensor:
        """A scalar where the updates are counted, which nothing waits for."""
        config = self.config
        way = (self.updates.double() / max(1, config.teacher_warmup)).clamp_max(1)
        start, end = config.teacher_temperature_start, config.teacher_temperature
        return start + (end - start) * way

    @torch.no_grad()
    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """The momentum network follows, and the center moves to the step's mean."""
        super().after_update(scalars, finite)
        self.target_prototypes.follow(self.prototypes, scalars["momentum"], finite)
        if finite is False or self._new_center_P is None:
            return
        moved_P = self.center_P.lerp(self._new_center_P.to(self.center_P.dtype), 1 - self.config.center_momentum)
        self.center_P.copy_(torch.where(finite, moved_P, self.center_P) if isinstance(finite, Tensor) else moved_P)
        self.updates += finite

    def param_groups(self) -> list[ParamGroup]:
        return [*super().param_groups(), *by_dimension(self.prototypes)]


class Prototypes(nn.Module):
    """Cosines of projections to prototypes: a linear layer of unit rows on unit vectors (vision_transformer.py)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(width, count, bias=False).weight.detach())

    def forward(self, z_BD: Tensor, learns: Tensor | None = None) -> Tensor:
        """(B, P), in fp32 at least; no gradient reaches the prototypes where ``learns``, on the device, is not set."""
        z_BD, weight_PD = unit(z_BD), unit(self.weight)
        if learns is not None:
            weight_PD = weight_PD.detach() + learns.to(weight_PD.dtype) * (weight_PD - weight_PD.detach())
        return z_BD @ weight_PD.to(z_BD.dtype).T


def distillation(cosines: Sequence[Tensor], teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """Mean over pairs of a distribution of ``teachers`` and another view of the batch's mean cross-entropy."""
    students = [F.log_softmax(c_BP / temperature, dim=1) for c_BP in cosines]
    losses = [
        -(teacher_BP * student_BP).sum(1).mean()
        for place, teacher_BP in enumerate(teachers)
        for other, student_BP in enumerate(students)
        if other != place
    ]
    return torch.stack(losses).mean()


def gelu_mlp(features: int, widths: tuple[int, ...], *, batch_norm: bool) -> nn.Sequential:
    """Linear, batch norm where it is asked for, and GELU for each width but the last, then one linear layer."""
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(features, width), *([nn.BatchNorm1d(width)] * batch_norm), nn.GELU()]
        features = width
    layers.append(nn.Linear(features, widths[-1]))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=STD)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
