"""Settings of timm's networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.encoders.timm.network import TimmEncoder


@dataclass(frozen=True)
class TimmConfig:
    """A network of timm's without its classifier, fresh: ConvNeXt, Swin, EfficientNet, ... Needs timm installed."""

    arch: str = "timm"
    """timm."""
    model: str = "convnext_tiny"
    """timm's name of the network, such as convnext_tiny or regnety_008 (timm.list_models())."""
    made_for: int = 0
    """Side in pixels that a network of one size (Swin, ...) is built for; 0: timm's own, or any where it takes any."""

    def check(self) -> None:
        """``UserError`` for a value that no network can have."""
        if self.made_for < 0:
            raise UserError(f"--made-for {self.made_for} is no side: give pixels, or 0 for timm's own.")
        if not self.model:
            raise UserError("--model is empty: give a name that timm.list_models() has, such as convnext_tiny.")

    def build(self) -> TimmEncoder:
        """A network with fresh weights, drawn from torch's global generator.

        ``UserError`` where timm does not import, has no such network, or cannot build it so.
        """
        from fastvicreg.encoders.timm.network import created

        self.check()
        return created(self.model, self.made_for)
