"""One training step as PyTorch runs it, operation by operation: forward, backward, update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from fastvicreg import stages
from fastvicreg.contracts import Batch, Method, Terms
from fastvicreg.train.updater import Updater

AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}

Loss = Callable[[Any, Any], Terms]
"""From what a method's ``embed`` and ``target`` return to its terms."""


class Forward(nn.Module):
    """A method's forward pass as one module, whose gradients DistributedDataParallel averages."""

    def __init__(self, method: Method, loss: Loss | None = None) -> None:
        """``loss`` stands in for the method's own."""
        super().__init__()
        self.method = method
        self._loss = loss

    def forward(self, views: tuple[Tensor, ...]) -> Terms:
        with record_function(stages.FORWARD):
            embeddings, targets = self.method.embed(views), self.method.target(views)
        if self._loss is not None:
            return self._loss(embeddings, targets)
        with record_function(stages.LOSS):
            return self.method.loss(embeddings, targets)


class EagerStep:
    """Joins a method and an updater; see ``Updater`` for a step that is not finite."""

    def __init__(
        self,
        method: Method,
        updater: Updater,
        *,
        device: str = "cpu",
        precision: str = "off",
        world_size: int = 1,
        loss: Loss | None = None,
    ) -> None:
        """``precision`` is a key of ``AUTOCAST``; ``loss`` stands in for the method's own, for a measurement."""
        self.method = method
        self.updater = updater
        self._device, self._precision = device, precision
        self._world_size, self._loss = world_size, loss
        self._forward: nn.Module = Forward(method, loss)
        if world_size > 1:
            # The batch norms are synchronised already: their buffers are the same everywhere.
            options: dict[str, Any] = {_buffers_option(): False, "gradient_as_bucket_view": True}
            self._forward = DistributedDataParallel(self._forward, **options)

    def replaced(
        self, *, updater: Updater | None = None, loss: Loss | None = None, world_size: int | None = None
    ) -> EagerStep:
        """The same step with another updater or loss in it, or among another number of processes.

        Among several, of one method only one step can be used: DistributedDataParallel hooks into its parameters.
        """
        return EagerStep(
            self.method,
            updater or self.updater,
            device=self._device,
            precision=self._precision,
            world_size=self._world_size if world_size is None else world_size,
            loss=loss or self._loss,
        )

    def autocast(self) -> torch.autocast | nullcontext[None]:
        """The precision in which the forward pass runs."""
        dtype = AUTOCAST[self._precision]
        return torch.autocast(torch.device(self._device).type, dtype) if dtype else nullcontext()

    def __call__(self, batch: Batch, scalars: Mapping[str, float]) -> Terms:
        """``scalars`` holds this step's learning rate as "lr", and the method's schedules."""
        self.updater.begin(scalars)
        with self.autocast():
            terms: Terms = self._forward(batch.views)
        self.updater.backward(terms.total)
        update = self.updater(terms.total.detach())
        self.method.after_update(scalars, update.finite)
        return Terms(update.total, terms.parts)


def _buffers_option() -> str:
    """DistributedDataParallel's, which torch 2.13 renamed."""
    known = signature(DistributedDataParallel).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
