"""Settings of the graphed step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.contracts import Method
    from fastvicreg.train.steps.graphed.step import GraphedStep
    from fastvicreg.train.updater import Updater


@dataclass(frozen=True)
class GraphedConfig:
    """Forward, backward and update as one CUDA graph, for a step whose launches take longer than its kernels."""

    name: ClassVar[str] = "graphed"
    captured: ClassVar[bool] = True

    def check(self) -> None:
        """It has no settings."""

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """It takes any batch; another size of the views is recorded anew."""

    def build(self, method: Method, updater: Updater, *, device: str, precision: str, world_size: int) -> GraphedStep:
        """The step. ``UserError`` without CUDA."""
        from fastvicreg.train.steps.graphed.step import GraphedStep

        if not device.startswith("cuda"):
            raise UserError(f"--step graphed needs CUDA, not --device {device}: give --step eager or compiled.")
        return GraphedStep(method, updater, device=device, precision=precision, world_size=world_size)
