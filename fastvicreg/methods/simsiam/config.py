"""Settings of SimSiam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError
from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import Regularized, check_no_predictor, check_share

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.simsiam.method import SimSiam


@dataclass(frozen=True)
class SimSiamConfig(Regularized):
    """A predictor of each view's projection by the other's, which is held constant: no momentum, no negatives."""

    name: ClassVar[str] = "simsiam"
    takes_two_views: ClassVar[bool] = True

    projector: tuple[int, ...] = (2048, 2048, 2048)
    """Widths of the projector's layers; the last is the projection's."""
    predictor: bool = True
    """Whether a predictor stands on the projection; without it and the variance term the embeddings collapse."""
    predictor_hidden: tuple[int, ...] = (512,)
    """Widths of the predictor's hidden layers; its output has the projection's."""
    predictor_constant_lr: bool = True
    """The predictor's learning rate stays at its peak, without warm-up and cosine."""
    momentum_encoder: bool = False
    """Targets from a momentum copy of encoder and projector in place of the trained network itself."""
    momentum: float = 0.99
    """Momentum of the copy at the start, where there is one; it rises to 1 by half a cosine."""
    stop_gradient: bool = True
    """Whether targets are constants to the gradient; a momentum copy's always are."""
    batch_norm: bool = True
    """Batch norm in the projector, its output included, and in the predictor."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        check_widths("--predictor-hidden", self.predictor_hidden)
        check_share("--momentum", self.momentum, "the target network")
        if not self.momentum_encoder and self.momentum != SimSiamConfig.momentum:
            raise UserError(f"--momentum {self.momentum} needs a target network: give --momentum-encoder.")
        if self.momentum_encoder and not self.stop_gradient:
            raise UserError("--no-stop-gradient and --momentum-encoder: no gradient reaches a momentum copy's targets.")
        self.check_regularized()

    def check_unused(self) -> None:
        """``UserError`` for a setting that would change nothing."""
        if not self.predictor:
            check_no_predictor(self.predictor_hidden, SimSiamConfig.predictor_hidden)
            if not self.predictor_constant_lr:
                raise UserError("--no-predictor-constant-lr needs a predictor: leave it out, or --no-predictor.")

    def notes(self) -> tuple[str, ...]:
        """What a person should know of these settings, one line each."""
        if self.regularize == "raw" and self.variance and self.batch_norm:
            return (
                f"--variance {self.variance:g} --regularize raw does nothing here: the projector ends in batch norm, "
                "whose outputs have a standard deviation of 1 until variances before it fall to its eps of 1e-5; "
                "--regularize normalized or --no-batch-norm lets it act.",
            )
        return self.regularized_notes()

    def build(self, context: BuildContext) -> SimSiam:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.simsiam.method import SimSiam

        return SimSiam(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
