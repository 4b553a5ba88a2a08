"""Settings of DINO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError
from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import Regularized, check_positive, check_share

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.dino.method import DINO


@dataclass(frozen=True)
class DINOConfig(Regularized):
    """Each view predicts a momentum network's distribution over prototypes, which is centered and sharpened.

    With --recipe dino or multicrop the momentum network sees the two large crops, the trained one all.
    """

    name: ClassVar[str] = "dino"

    projector: tuple[int, ...] = (2048, 2048, 256)
    """Widths of the projector's layers, with GELU between; the last is the projection's."""
    prototypes: int = 65536
    """Classes of the distributions: rows of the last layer, of length 1."""
    temperature: float = 0.1
    """Divides the trained network's cosines to the prototypes."""
    teacher_temperature: float = 0.04
    """Divides those of the momentum network, after they are centered; at least .02."""
    teacher_temperature_start: float = 0.04
    """Its value at the start, from which it goes linearly over --teacher-warmup."""
    teacher_warmup: int = 0
    """First updates in which the momentum network's temperature goes to its own value."""
    center_momentum: float = 0.9
    """Share of the earlier center in the one that is taken from the momentum network's cosines."""
    freeze_prototypes: int = 1251
    """First updates that leave the prototypes alone: an epoch of ImageNet at batch 1024."""
    momentum: float = 0.996
    """Momentum of the momentum network at the start; it rises to 1 by half a cosine."""
    batch_norm: bool = False
    """Batch norm in the projector."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        check_positive(temperature=self.temperature)
        for flag, value in (
            ("--teacher-temperature", self.teacher_temperature),
            ("--teacher-temperature-start", self.teacher_temperature_start),
        ):
            if not 0.02 <= value < float("inf"):
                raise UserError(f"{flag} {value} is too sharp for fp32, or no number: give .02 or more.")
        if self.teacher_temperature_start != self.teacher_temperature and not self.teacher_warmup:
            raise UserError(
                f"--teacher-temperature-start {self.teacher_temperature_start} and --teacher-temperature "
                f"{self.teacher_temperature} differ without a way between: give --teacher-warmup too."
            )
        check_share("--center-momentum", self.center_momentum, "the center")
        check_share("--momentum", self.momentum, "the momentum network")
        if self.prototypes < 2:
            raise UserError(f"--prototypes {self.prototypes} leaves nothing to tell apart: give 2 or more.")
        for flag, value in (
            ("--teacher-warmup", self.teacher_warmup),
            ("--freeze-prototypes", self.freeze_prototypes),
        ):
            if value < 0:
                raise UserError(f"{flag} {value} is too small: give 0 or more.")
        self.check_regularized()

    def check_unused(self) -> None:
        """``UserError`` for a setting that would change nothing."""
        if self.teacher_warmup > 0 and self.teacher_temperature_start == self.teacher_temperature:
            raise UserError(
                f"--teacher-warmup {self.teacher_warmup} has no way to go: give --teacher-temperature-start another "
                f"value than --teacher-temperature {self.teacher_temperature}, or leave it out."
            )

    def notes(self) -> tuple[str, ...]:
        """What a person should know of these settings, one line each."""
        return self.regularized_notes()

    def build(self, context: BuildContext) -> DINO:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.dino.method import DINO

        return DINO(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
