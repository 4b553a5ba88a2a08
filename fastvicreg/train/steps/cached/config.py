"""Settings of the cached step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.contracts import Method
    from fastvicreg.train.steps.cached.step import CachedStep
    from fastvicreg.train.updater import Updater


@dataclass(frozen=True)
class CachedConfig:
    """The whole batch's exact loss with a part of its activations in memory at a time: up to a third more operations.

    Batch norms see a micro-batch (of each process, of all together), not the whole batch: the one difference.
    """

    name: ClassVar[str] = "cached"
    captured: ClassVar[bool] = False

    micro_batches: int = 4
    """Parts that a process's share of the batch is cut into. Batch norms take their statistics of a part."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        if self.micro_batches < 1:
            raise UserError(f"--micro-batches {self.micro_batches} is too small: give 1 or more.")

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """``UserError`` where the parts would differ in size, or hold a single image."""
        parts = self.micro_batches * world_size
        if batch_size % parts:
            among = f" of {world_size} processes" if world_size > 1 else ""
            raise UserError(
                f"--batch-size {batch_size} cannot be cut into --micro-batches {self.micro_batches}{among}: "
                f"give a multiple of {parts}, such as {max(2, round(batch_size / parts)) * parts}."
            )
        if batch_size // parts < 2:
            raise UserError(
                f"--micro-batches {self.micro_batches} leaves {batch_size // parts} image for a batch norm's "
                f"statistics: give at most {batch_size // (2 * world_size)}."
            )

    def build(self, method: Method, updater: Updater, *, device: str, precision: str, world_size: int) -> CachedStep:
        """The step."""
        from fastvicreg.train.steps.cached.step import CachedStep

        return CachedStep(
            method,
            updater,
            device=device,
            precision=precision,
            world_size=world_size,
            micro_batches=self.micro_batches,
        )
