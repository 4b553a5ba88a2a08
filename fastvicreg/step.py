"""One training step: forward, backward, finite gate, update; nothing in it waits for the device but fp16's scaler."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastvicreg.contracts import Terms
from fastvicreg.updater import Updater

AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Joint(nn.Module):
    """Encoder and objective as one module, whose gradients DistributedDataParallel averages."""

    def __init__(self, encoder: nn.Module, objective: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective

    def forward(self, views: tuple[Tensor, ...]) -> Terms:
        return self.objective(views, self.encoder)


class TrainStep:
    """Joins encoder, objective and updater: forward, backward, update."""

    def __init__(
        self,
        encoder: nn.Module,
        objective: nn.Module,
        updater: Updater,
        *,
        device: str = "cpu",
        precision: str = "off",
        world_size: int = 1,
    ) -> None:
        self.encoder = encoder
        self.objective = objective
        self.updater = updater
        self._forward: nn.Module = Joint(encoder, objective)
        if world_size > 1:
            # The batch norms are synchronised already: their buffers are the same everywhere.
            options: dict[str, Any] = {_buffers_option(): False, "gradient_as_bucket_view": True}
            self._forward = DistributedDataParallel(self._forward, **options)
        self._device = torch.device(device).type
        self._dtype = AUTOCAST[precision]

    def __call__(self, views: tuple[Tensor, ...], schedule: Mapping[str, float]) -> Terms:
        """``schedule["lr"]`` is this step's learning rate."""
        self.updater.begin(schedule)
        with torch.autocast(self._device, self._dtype) if self._dtype else nullcontext():
            terms: Terms = self._forward(views)
        self.updater.backward(terms.total)
        update = self.updater(terms.total.detach())
        self.objective.after_step(schedule)  # type: ignore[operator]
        return Terms(update.total, terms.parts)


def _buffers_option() -> str:
    """DistributedDataParallel's, which torch 2.13 renamed."""
    known = signature(DistributedDataParallel).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
