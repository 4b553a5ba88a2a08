"""Settings of the ResNet encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from fastvicreg.encoders import check_drop_path
from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.encoders.resnet.network import ResNet

NARROWEST = 16
"""Below it, oneDNN's backward pass of a strided 1x1 channels-last convolution writes out of bounds (oneDNN #6035)."""

Stem = Literal["7x7", "3x3", "3x3s2", "3x3p2"]


class StemForm(NamedTuple):
    """The first convolution."""

    kernel: int
    stride: int
    padding: int


STEMS: dict[str, StemForm] = {
    "7x7": StemForm(7, 2, 3),
    "3x3": StemForm(3, 1, 1),
    "3x3s2": StemForm(3, 2, 1),
    "3x3p2": StemForm(3, 1, 2),
}
"""The large one is followed by max-pooling."""


@dataclass(frozen=True)
class ResNetConfig:
    """A ResNet under torchvision's parameter names."""

    stages: ClassVar[int] = 4
    """Those whose blocks --recompute-stages takes."""

    arch: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101 or resnet50x2; other families: vit_tiny, vit_small, vit_base;
    convnext_tiny, convnext_small, convnext_base, convnext_large, convnext_xlarge; timm (any of its networks); and for
    --pair resnet18_1d, resnet34_1d, gru, text_transformer. --arch NAME --help shows a family's settings."""
    width: int = 64
    """Channels of the first stage (resnet50x2 doubles it), at least 16."""
    stem: Stem = "7x7"
    """7x7 stride 2 and max-pool (ImageNet); 3x3 of stride 1, or 2 (3x3s2), or padding 2 as solo-learn (3x3p2), without
    pooling (small images)."""
    drop_path: float = 0.0
    """Stochastic depth: share of the samples for which the last block's residual branch is left out in training, the
    first block's never, others between; not in a momentum network (DINO: .1)."""

    def check(self) -> None:
        """``UserError`` for a value that no network can have."""
        if self.width < NARROWEST:
            raise UserError(
                f"--width {self.width} is below {NARROWEST}, where oneDNN corrupts memory on a CPU: give {NARROWEST}."
            )
        check_drop_path(self.drop_path)

    def build(self) -> ResNet:
        """A network with fresh weights, drawn from torch's global generator."""
        from fastvicreg.encoders.resnet.network import resnet

        self.check()
        return resnet(self.arch, width=self.width, stem=self.stem, drop_path=self.drop_path)
