"""Settings of W-MSE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError
from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import Branched, Regularized

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.wmse.method import WMSE


@dataclass(frozen=True)
class WMSEConfig(Regularized, Branched):
    """The distance of both views' projections after each is whitened over slices of the batch."""

    name: ClassVar[str] = "wmse"
    takes_two_views: ClassVar[bool] = True

    projector: tuple[int, ...] = (1024, 64)
    """Widths of the projector's layers; the last is the projection's."""
    w_size: int = 128
    """Rows of a slice that is whitened by itself: at least twice the projection's width, at most the batch. Rows of a
    process's batch that fill no slice have no part in the loss: give a divisor of it."""
    w_iter: int = 1
    """Times that the batch is cut anew; the loss is the mean."""
    w_eps: float = 0.0
    """Share of the identity in the covariance that is whitened by, 0 to 1."""
    batch_norm: bool = True
    """Batch norm in the projector."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        self.widths_b("--projector", self.projector)
        if self.w_size < 2 * self.projector[-1]:
            raise UserError(
                f"--w-size {self.w_size} is below twice the projection's width, {self.projector[-1]}, where a slice's "
                f"covariance is close to singular: give --w-size {2 * self.projector[-1]} or a narrower --projector."
            )
        if self.w_iter < 1:
            raise UserError(f"--w-iter {self.w_iter} leaves no loss: give 1 or more.")
        if not 0 <= self.w_eps < 1:
            raise UserError(f"--w-eps {self.w_eps} is no share of the identity: give 0 or more, below 1.")
        self.check_regularized()

    def notes(self) -> tuple[str, ...]:
        """What a person should know of these settings, one line each."""
        return self.regularized_notes()

    def build(self, context: BuildContext) -> WMSE:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.wmse.method import WMSE

        method = WMSE(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
        return self.with_branch(method, context)
