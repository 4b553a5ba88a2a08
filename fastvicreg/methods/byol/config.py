"""Settings of BYOL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError
from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import Regularized, check_no_predictor, check_share

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.byol.method import BYOL


@dataclass(frozen=True)
class BYOLConfig(Regularized):
    """A predictor of each view's projection by a target network, which follows the trained one by momentum."""

    name: ClassVar[str] = "byol"
    takes_two_views: ClassVar[bool] = True

    projector: tuple[int, ...] = (4096, 256)
    """Widths of the projector's layers; the last is the projection's."""
    predictor: bool = True
    """Whether a predictor stands on the projection; without it and the variance term the embeddings collapse."""
    predictor_hidden: tuple[int, ...] = (4096,)
    """Widths of the predictor's hidden layers; its output has the projection's."""
    momentum_encoder: bool = True
    """Whether targets come from a momentum copy; without it from the trained network itself."""
    momentum: float = 0.99
    """Momentum of the target network at the start; it rises to 1 by half a cosine."""
    stop_gradient: bool = True
    """Whether targets are constants to the gradient; a momentum copy's always are."""
    batch_norm: bool = True
    """Batch norm in the projector and the predictor."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        check_widths("--predictor-hidden", self.predictor_hidden)
        check_share("--momentum", self.momentum, "the target network")
        if not self.momentum_encoder and self.momentum != BYOLConfig.momentum:
            raise UserError(f"--momentum {self.momentum} needs a target network: leave out --no-momentum-encoder.")
        if self.momentum_encoder and not self.stop_gradient:
            raise UserError(
                "--no-stop-gradient needs --no-momentum-encoder: no gradient reaches a momentum copy's targets."
            )
        self.check_regularized()

    def check_unused(self) -> None:
        """``UserError`` for a setting that would change nothing."""
        if not self.predictor:
            check_no_predictor(self.predictor_hidden, BYOLConfig.predictor_hidden)

    def notes(self) -> tuple[str, ...]:
        """What a person should know of these settings, one line each."""
        return self.regularized_notes()

    def build(self, context: BuildContext) -> BYOL:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.byol.method import BYOL

        return BYOL(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
