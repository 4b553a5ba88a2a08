"""Settings of the ConvNeXts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fastvicreg.encoders import check_drop_path
from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.encoders.convnext.network import ConvNeXt

SIZES = {
    "convnext_tiny": (96, (3, 3, 9, 3)),
    "convnext_small": (96, (3, 3, 27, 3)),
    "convnext_base": (128, (3, 3, 27, 3)),
    "convnext_large": (192, (3, 3, 27, 3)),
    "convnext_xlarge": (256, (3, 3, 27, 3)),
}
"""Channels of the first stage, and blocks of each, by architecture."""


@dataclass(frozen=True)
class ConvNeXtConfig:
    """A ConvNeXt under timm's parameter names, whose features are as wide as its last stage."""

    stages: ClassVar[int] = 4
    """Those whose blocks --recompute-stages takes."""

    arch: str = "convnext_small"
    """convnext_tiny, convnext_small, convnext_base, convnext_large or convnext_xlarge."""
    width: int = 0
    """Channels of the first stage, doubled at each of the three others; 0: the architecture's (96 to 256)."""
    patch: int = 4
    """Side of the first convolution's patches in pixels; 1 or 2 for small images."""
    layer_scale: float = 1e-6
    """What each branch's learned factors begin with; 0: none (VICRegL's)."""
    final_norm: Literal["pooled", "positions"] = "pooled"
    """What the last layer norm is given: the mean over positions (ConvNeXt, timm), or each of them, before the mean
    (VICRegL's, whose maps are normed so)."""
    drop_path: float = 0.0
    """Stochastic depth: share of the samples for which the last block's residual branch is left out in training, the
    first block's never, others between; not in a momentum network (VICRegL: .1)."""

    def check(self) -> None:
        """``UserError`` for the first value that no network can have."""
        for flag, value, least in (("--width", self.width, 0), ("--patch", self.patch, 1)):
            if value < least:
                raise UserError(f"{flag} {value} is too small: give {least} or more.")
        if not 0 <= self.layer_scale < math.inf:
            raise UserError(f"--layer-scale {self.layer_scale} is no factor to begin with: give 0 or more.")
        check_drop_path(self.drop_path)

    def build(self) -> ConvNeXt:
        """A network with fresh weights, drawn from torch's global generator."""
        from fastvicreg.encoders.convnext.network import ConvNeXt

        self.check()
        width, depths = SIZES[self.arch]
        return ConvNeXt(
            self.width or width,
            depths,
            patch=self.patch,
            layer_scale=self.layer_scale,
            norm_positions=self.final_norm == "positions",
            drop_path=self.drop_path,
        )
