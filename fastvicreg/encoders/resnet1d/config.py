"""Settings of the ResNets for waveforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.encoders import check_drop_path
from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.encoders.resnet1d.network import ResNet1d


@dataclass(frozen=True)
class ResNet1dConfig:
    """A ResNet whose convolutions run over time (paper Table 6: a 1-D ResNet-18 of 384 features)."""

    takes: ClassVar[str] = "waveforms"
    stages: ClassVar[int] = 4
    """Those whose blocks --recompute-stages takes."""

    arch: str = "resnet18_1d"
    """resnet18_1d or resnet34_1d."""
    width: int = 48
    """Channels of the first stage; features are eight times as many, 384 as published."""
    drop_path: float = 0.0
    """Stochastic depth: share of the samples for which the last block's residual branch is left out in training, the
    first block's never, others between; not in a momentum network (DINO: .1)."""

    def check(self) -> None:
        """``UserError`` for a value that no network can have."""
        if self.width < 1:
            raise UserError(f"--width {self.width} is too small: give 1 or more.")
        check_drop_path(self.drop_path)

    def build(self) -> ResNet1d:
        """A network with fresh weights, drawn from torch's global generator."""
        from fastvicreg.encoders.resnet1d.network import ResNet1d

        self.check()
        return ResNet1d(self.arch, self.width, self.drop_path)
