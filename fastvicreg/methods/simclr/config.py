"""Settings of SimCLR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import Branched, Regularized, check_positive

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.simclr.method import SimCLR


@dataclass(frozen=True)
class SimCLRConfig(Regularized, Branched):
    """Each view's other view is told from all other images of the batch, by cross-entropy of cosines."""

    name: ClassVar[str] = "simclr"
    takes_two_views: ClassVar[bool] = True

    projector: tuple[int, ...] = (2048, 2048, 128)
    """Widths of the projector's layers; the last is the projection's. Two layers in the first paper, three since."""
    temperature: float = 0.1
    """Divides the cosines: .1 for ImageNet, .5 for CIFAR-10 in the paper, .2 in solo-learn."""
    loss_form: Literal["mean", "official"] = "mean"
    """mean: over both views' anchors; official: the views' means summed, twice as much, as the released code."""
    batch_norm: bool = True
    """Batch norm in the projector, its output included."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        self.widths_b("--projector", self.projector)
        check_positive(temperature=self.temperature)
        self.check_regularized()

    def notes(self) -> tuple[str, ...]:
        """What a person should know of these settings, one line each."""
        return self.regularized_notes()

    def build(self, context: BuildContext) -> SimCLR:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.simclr.method import SimCLR

        method = SimCLR(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
        return self.with_branch(method, context)
