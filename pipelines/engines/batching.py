"""Which samples of an epoch's order form a batch, and which of those this rank delivers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastvicreg.errors import UserError

LEAST = 2
"""Images that a training batch compares at least."""


@dataclass(frozen=True)
class Batching:
    """``batch_size`` is the total over all ranks; each takes an equal, contiguous share of every batch."""

    samples: int
    batch_size: int
    drop_last: bool
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size} is no batch: give 1 or more.")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank {self.rank} is none of {self.world_size} processes: ranks count from 0.")
        if self.batch_size % self.world_size:
            raise UserError(
                f"--batch-size {self.batch_size}, the total batch, does not divide among {self.world_size} processes."
            )
        if self.drop_last and self.samples < LEAST:
            raise UserError(f"the data holds {self.samples} image, and training compares {LEAST} at least: add some.")
        if self.drop_last and self.batch_size > self.samples:
            raise UserError(
                f"--batch-size {self.batch_size} is larger than the data's {self.samples} images: "
                f"give {self.samples} or less."
            )

    @property
    def batches_per_epoch(self) -> int:
        """Full batches, and the last partial one unless ``drop_last``."""
        return self.samples // self.batch_size if self.drop_last else -(-self.samples // self.batch_size)

    def slots(self, order_N: Tensor, batch: int) -> Tensor:
        """slot_B: this rank's part of the batch numbered ``batch``."""
        whole = order_N[batch * self.batch_size : (batch + 1) * self.batch_size]
        share = -(-len(whole) // self.world_size)
        return whole[self.rank * share : (self.rank + 1) * share].clone()
