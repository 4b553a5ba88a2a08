"""Settings of the compiled step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fastvicreg.config import resumable

if TYPE_CHECKING:
    from fastvicreg.contracts import Method
    from fastvicreg.train.steps.compiled.step import CompiledStep
    from fastvicreg.train.updater import Updater


@dataclass(frozen=True)
class CompiledConfig:
    """Forward pass, loss and their gradients through torch.compile, as two whole graphs."""

    name: ClassVar[str] = "compiled"
    captured: ClassVar[bool] = False

    compile_mode: Literal["default", "max-autotune-no-cudagraphs"] = resumable("default")
    """default, or max-autotune-no-cudagraphs: minutes of search at the start for faster kernels."""

    def check(self) -> None:
        """Its type says all."""

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """It takes any batch."""

    def build(self, method: Method, updater: Updater, *, device: str, precision: str, world_size: int) -> CompiledStep:
        """The step; it compiles at its first call, and anew for views of another size."""
        from fastvicreg.train.steps.compiled.step import CompiledStep

        return CompiledStep(
            method, updater, device=device, precision=precision, world_size=world_size, mode=self.compile_mode
        )
