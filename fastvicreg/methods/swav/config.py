"""Settings of SwAV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError
from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import Regularized, check_positive

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.swav.method import SwAV


@dataclass(frozen=True)
class SwAVConfig(Regularized):
    """Each view predicts how the other is assigned to prototypes, which a batch shares evenly (two views)."""

    name: ClassVar[str] = "swav"

    projector: tuple[int, ...] = (2048, 128)
    """Widths of the projector's layers; the last is the projection's."""
    prototypes: int = 3000
    """Prototypes that views are assigned to."""
    temperature: float = 0.1
    """Divides the cosines to the prototypes in the prediction."""
    sharpness: float = 0.05
    """Divides them in the assignment (Sinkhorn's epsilon), at least .02."""
    sinkhorn: int = 3
    """Iterations of the assignment."""
    freeze_prototypes: int = 313
    """First updates that leave the prototypes alone: an epoch of ImageNet at batch 4096 in the released code."""
    batch_norm: bool = True
    """Batch norm in the projector."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        check_positive(temperature=self.temperature)
        if not self.sharpness >= 0.02:
            raise UserError(f"--sharpness {self.sharpness} overflows fp32's exponential: give .02 or more.")
        if self.prototypes < 2:
            raise UserError(f"--prototypes {self.prototypes} leaves nothing to tell apart: give 2 or more.")
        for flag, value, least in (
            ("--sinkhorn", self.sinkhorn, 1),
            ("--freeze-prototypes", self.freeze_prototypes, 0),
        ):
            if value < least:
                raise UserError(f"{flag} {value} is too small: give {least} or more.")
        self.check_regularized()

    def notes(self) -> tuple[str, ...]:
        """What a person should know of these settings, one line each."""
        return self.regularized_notes()

    def build(self, context: BuildContext) -> SwAV:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.swav.method import SwAV

        return SwAV(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
