"""Settings of BYOL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError
from fastvicreg.methods import check_widths

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.byol.method import BYOL


@dataclass(frozen=True)
class BYOLConfig:
    """A predictor of each view's projection by a target network, which follows the trained one by momentum."""

    name: ClassVar[str] = "byol"

    projector: tuple[int, ...] = (4096, 256)
    """Widths of the projector's layers; the last is the projection's."""
    predictor: tuple[int, ...] = (4096,)
    """Widths of the predictor's hidden layers; its output has the projection's."""
    momentum: float = 0.99
    """Momentum of the target network at the start; it rises to 1 by half a cosine."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        check_widths("--predictor", self.predictor)
        if not 0 <= self.momentum <= 1:
            raise UserError(f"--momentum {self.momentum} is no share of the target network: give 0 to 1.")

    def build(self, context: BuildContext) -> BYOL:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.byol.method import BYOL

        return BYOL(context.build_encoder(), self)
