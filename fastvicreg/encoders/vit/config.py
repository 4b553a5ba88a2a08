"""Settings of the vision transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.encoders import check_blocks
from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.encoders.vit.network import VisionTransformer

SIZES = {"vit_tiny": (192, 3), "vit_small": (384, 6), "vit_base": (768, 12)}
"""Width and heads by architecture."""


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer under timm's parameter names; its features are the class token's, after the last norm."""

    stages: ClassVar[int] = 1
    """Those whose blocks --recompute-stages takes: all blocks are one."""

    arch: str = "vit_small"
    """vit_tiny, vit_small or vit_base: 192, 384 or 768 wide, in heads of 64."""
    patch: int = 16
    """Side of a patch in pixels; views' sides must be multiples of it."""
    grid: int = 14
    """Positions a side that are learned (224 / 16); for views of another size they are resampled, bicubic."""
    depth: int = 12
    """Blocks."""
    drop_path: float = 0.0
    """Stochastic depth: share of the samples for which the last block's residual branches are left out in training,
    the first block's never, others between; not in a momentum network (DINO: .1)."""

    def check(self) -> None:
        """``UserError`` for the first value that no network can have."""
        for flag, value in (("--patch", self.patch), ("--grid", self.grid)):
            if value < 1:
                raise UserError(f"{flag} {value} is too small: give 1 or more.")
        check_blocks(self.depth, self.drop_path)

    def build(self) -> VisionTransformer:
        """A network with fresh weights, drawn from torch's global generator."""
        from fastvicreg.encoders.vit.network import VisionTransformer

        self.check()
        width, heads = SIZES[self.arch]
        return VisionTransformer(width, heads, self.depth, self.patch, self.grid, self.drop_path)
