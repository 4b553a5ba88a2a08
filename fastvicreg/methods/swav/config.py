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
    """Each view predicts how two of them are assigned to prototypes, which a batch shares evenly.

    With --recipe multicrop the two are the large crops, which the small ones predict too.
    """

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
    queue: int = 0
    """Earlier projections of each of the two views that take part in the assignment, for a batch with fewer images than
    prototypes: 3840 at batch 256 in the released code; at least a batch, at most the data; 0: none."""
    queue_from_epoch: int = 15
    """First epoch, from 0, whose projections enter the queue; it is used once it is full."""
    batch_norm: bool = True
    """Batch norm in the projector."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        check_positive(temperature=self.temperature, sharpness=self.sharpness)
        if not self.sharpness >= 0.02:
            raise UserError(f"--sharpness {self.sharpness} overflows fp32's exponential: give .02 or more.")
        if self.prototypes < 2:
            raise UserError(f"--prototypes {self.prototypes} leaves nothing to tell apart: give 2 or more.")
        for flag, value, least in (
            ("--sinkhorn", self.sinkhorn, 1),
            ("--freeze-prototypes", self.freeze_prototypes, 0),
            ("--queue", self.queue, 0),
            ("--queue-from-epoch", self.queue_from_epoch, 0),
        ):
            if value < least:
                raise UserError(f"{flag} {value} is too small: give {least} or more.")
        if not self.queue and self.queue_from_epoch != SwAVConfig.queue_from_epoch:
            raise UserError(
                f"--queue-from-epoch {self.queue_from_epoch} starts no queue: give --queue too, or {self.no_queue()}."
            )
        self.check_regularized()

    def no_queue(self) -> str:
        """The flags that leave the queue out; a preset's own epoch must be taken back too."""
        default = SwAVConfig.queue_from_epoch
        return "--queue 0" + (f" --queue-from-epoch {default}" if self.queue_from_epoch != default else "")

    def notes(self) -> tuple[str, ...]:
        """What a person should know of these settings, one line each."""
        return self.regularized_notes()

    def build(self, context: BuildContext) -> SwAV:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.swav.method import SwAV

        return SwAV(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
