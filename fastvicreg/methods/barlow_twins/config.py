"""Settings of Barlow Twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import Branched, Regularized, check_positive

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.barlow_twins.method import BarlowTwins


@dataclass(frozen=True)
class BarlowTwinsConfig(Regularized, Branched):
    """The correlation matrix of two views' projections is pulled to the identity."""

    name: ClassVar[str] = "barlow_twins"
    takes_two_views: ClassVar[bool] = True

    projector: tuple[int, ...] = (8192, 8192, 8192)
    """Widths of the projector's layers; the last is the projection's."""
    redundancy: float = 0.0051
    """Weight of the squared off-diagonal correlations (the paper's lambda)."""
    loss_scale: float = 1.0
    """Factor of the whole loss: 1 as the released code; solo-learn takes .1 for small images, .048 for ImageNet."""
    lr_scale_1d: float = 0.024
    """Learning rate of biases and norms as a share of the others': .0048 to .2 in the released code."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        self.widths_b("--projector", self.projector)
        check_positive(redundancy=self.redundancy, loss_scale=self.loss_scale, lr_scale_1d=self.lr_scale_1d)
        self.check_regularized()

    def notes(self) -> tuple[str, ...]:
        """What a person should know of these settings, one line each."""
        return self.regularized_notes()

    def build(self, context: BuildContext) -> BarlowTwins:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.barlow_twins.method import BarlowTwins

        method = BarlowTwins(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
        return self.with_branch(method, context)
