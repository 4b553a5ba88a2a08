"""Settings of VICRegL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from fastvicreg.errors import UserError
from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import check_weights

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.vicregl.method import VICRegL


@dataclass(frozen=True)
class VICRegLConfig:
    """VICReg on whole images, and on parts of them that are matched by their features and by where they lie.

    With --recipe multicrop the two large crops are compared with all others.
    """

    name: ClassVar[str] = "vicregl"
    takes_places: ClassVar[bool] = True

    expander: tuple[int, ...] = (8192, 8192, 8192)
    """Widths of the global expander's layers; the last is the embedding's."""
    local_projector: tuple[int, ...] = (512, 512, 512)
    """Widths of the layers that the feature map's positions go through."""
    alpha: float = 0.9
    """Share of the global criterion, above 0; the rest is the local one's. Published: .9 and .75; 1: no local one."""
    local_matches: tuple[int, ...] = (20, 4)
    """Positions of a large crop's map, and of a small one's, that are matched by location: those nearest to one of the
    other crop's; one number for both."""
    local_features: bool = True
    """Match each position with the other map's nearest by features."""
    local_locations: bool = True
    """Match positions with the other map's nearest in the image."""
    invariance: float = 25.0
    """Weight of the invariance terms, global and local."""
    variance: float = 25.0
    """Weight of the variance terms; 0 shows the collapse they prevent."""
    covariance: float = 1.0
    """Weight of the covariance terms, each the mean over views."""
    batch_norm: bool = True
    """Batch norm in the expander and the local projector."""
    layer_norm: bool = False
    """Layer norm there in place of batch norm (released code: with a ConvNeXt)."""

    @property
    def is_local(self) -> bool:
        """Whether the local criterion has a share."""
        return self.alpha < 1

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_weights(invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        check_widths("--expander", self.expander)
        check_widths("--local-projector", self.local_projector)
        if not 0 < self.alpha <= 1:
            raise UserError(f"--alpha {self.alpha} is no share of the global criterion: give above 0, to 1.")
        if not 1 <= len(self.local_matches) <= 2 or min(self.local_matches) < 1:
            given = " ".join(map(str, self.local_matches))
            raise UserError(
                f"--local-matches {given}: give one number of positions, or those of large and small crops, each 1 or "
                "more."
            )
        if self.layer_norm and not self.batch_norm:
            raise UserError("--layer-norm takes the place of batch norm: leave out --no-batch-norm.")
        if self.is_local and not (self.local_features or self.local_locations):
            raise UserError(
                f"--no-local-features and --no-local-locations leave --alpha {self.alpha} nothing local: leave one of "
                "them out, or give --alpha 1."
            )

    def check_unused(self) -> None:
        """``UserError`` for a setting that would change nothing."""
        if self.is_local:
            return
        for flag, given, default in (
            ("--local-matches", self.local_matches, VICRegLConfig.local_matches),
            ("--local-projector", self.local_projector, VICRegLConfig.local_projector),
        ):
            if given != default:
                _refuse_local(f"{flag} {' '.join(map(str, given))}")
        for flag, taken in (
            ("--no-local-features", self.local_features),
            ("--no-local-locations", self.local_locations),
        ):
            if not taken:
                _refuse_local(flag)

    def build(self, context: BuildContext) -> VICRegL:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.vicregl.method import VICRegL

        return VICRegL(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))


def _refuse_local(given: str) -> NoReturn:
    raise UserError(
        f"{given} is of the local criterion, and --alpha 1 leaves it no share: give --alpha .9, or leave it out."
    )
