"""Settings of VICReg."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fastvicreg.errors import UserError
from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import Branched, check_weights

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.vicreg.method import VICReg


@dataclass(frozen=True)
class VICRegConfig(Branched):
    """Variance, invariance and covariance terms on the embeddings of two views."""

    name: ClassVar[str] = "vicreg"

    expander: tuple[int, ...] = (8192, 8192, 8192)
    """Widths of the expander's layers; the last is the embedding's."""
    invariance: float = 25.0
    """Weight of the invariance term."""
    variance: float = 25.0
    """Weight of the variance term; 0 shows the collapse it prevents."""
    covariance: float = 1.0
    """Weight of the covariance term."""
    predictor: bool = False
    """A predictor of the expander's form with two layers (paper eq. 8): invariance is then of its output."""
    batch_norm: bool = True
    """Batch norm in the expander, and in the predictor."""
    loss_form: Literal["official", "paper"] = "official"
    """official: each branch's variance hinge halved, as the released code; paper: not halved."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_weights(invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        check_widths("--expander", self.expander)
        self.widths_b("--expander", self.expander)
        if self.predictor and self.branch_b:
            raise UserError(
                f"--predictor is on both views' embeddings of one network, and --branch-b {self.branch_b[0]} gives "
                "each view its own: leave one of them out."
            )

    def build(self, context: BuildContext) -> VICReg:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.vicreg.method import VICReg

        method = VICReg(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
        return self.with_branch(method, context)
