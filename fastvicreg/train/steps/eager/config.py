"""Settings of the eager step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from fastvicreg.contracts import Method
    from fastvicreg.train.steps.eager.step import EagerStep
    from fastvicreg.train.updater import Updater


@dataclass(frozen=True)
class EagerConfig:
    """Operation by operation: runs everywhere, needs no compiler."""

    name: ClassVar[str] = "eager"
    captured: ClassVar[bool] = False

    def check(self) -> None:
        """It has no settings."""

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """It takes any batch."""

    def build(self, method: Method, updater: Updater, *, device: str, precision: str, world_size: int) -> EagerStep:
        """The step."""
        from fastvicreg.train.steps.eager.step import EagerStep

        return EagerStep(method, updater, device=device, precision=precision, world_size=world_size)
