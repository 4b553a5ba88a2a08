"""A first-in, first-out queue of earlier steps' projections on the device, which a checkpoint keeps.

Shape suffixes: M keys of a step, K keys in the queue, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Horizon
from fastvicreg.errors import UserError


def check_queue(size: int, horizon: Horizon, otherwise: str) -> None:
    """``UserError`` for a queue below the batch, or above an epoch's images, where ``otherwise`` happens."""
    batch, samples = horizon.batch_size, horizon.steps_per_epoch * horizon.batch_size
    if size < batch:
        raise UserError(f"--queue {size} is below --batch-size {batch}: give at least the batch.")
    if size > samples:
        raise UserError(
            f"--queue {size} is larger than the {samples} images of an epoch, so that {otherwise}: "
            f"give --queue {samples // 2 // batch * batch or samples}."
        )


class KeyQueue(nn.Module):
    """``keys_KD``, unit vectors, and the place of the oldest: both are buffers, and no call waits for the device."""

    keys_KD: Tensor
    oldest: Tensor

    def __init__(self, size: int, width: int) -> None:
        """Random unit vectors, drawn from torch's global generator, as MoCo's builder.py."""
        super().__init__()
        self.register_buffer("keys_KD", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, new_MD: Tensor, finite: bool | Tensor) -> None:
        """``new_MD`` in place of the oldest M of K >= M; nothing where ``finite`` is not set."""
        if finite is False:
            return
        size, count = len(self.keys_KD), len(new_MD)
        at_M = (self.oldest + torch.arange(count, device=self.oldest.device)) % size
        new_MD = new_MD.to(self.keys_KD.dtype)
        moved = (self.oldest + count) % size
        if isinstance(finite, Tensor):  # on the device: the same keys again, without a wait
            new_MD = torch.where(finite, new_MD, self.keys_KD[at_M])
            moved = torch.where(finite, moved, self.oldest)
        self.keys_KD.index_copy_(0, at_M, new_MD)
        self.oldest.copy_(moved)
