"""One training step as PyTorch runs it, operation by operation: forward, backward, update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from fastvicreg import stages
from fastvicreg.contracts import Batch, Method, Terms
from fastvicreg.train.clipping import COLUMN as CLIPPED
from fastvicreg.train.device import autocast
from fastvicreg.train.drop_path import drawn, drops_of
from fastvicreg.train.updater import Updater

Embed = Callable[[tuple[Tensor, ...]], tuple[Any, Any]]
"""From views to what a method's ``embed`` and ``target`` return."""
Loss = Callable[[Any, Any], Terms]
"""From what a method's ``embed`` and ``target`` return to its terms."""


class Forward(nn.Module):
    """A method's forward pass as one module, whose gradients DistributedDataParallel averages."""

    def __init__(self, method: Method, embed: Embed, loss: Loss) -> None:
        super().__init__()
        self.method = method
        self._embed, self._loss = embed, loss

    def forward(self, views: tuple[Tensor, ...]) -> Terms:
        with record_function(stages.FORWARD):
            embeddings, targets = self._embed(views)
        return self._loss(embeddings, targets)


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
        self._device, self.precision = device, precision
        self._world_size, self._replacement = world_size, loss
        self._in_bf16 = False
        self._drops = drops_of(method)
        self._embed, self._loss = self._functions()
        self._forward: nn.Module = Forward(method, self._embed, self._terms)
        if world_size > 1 and self._averages_in_backward():
            # The batch norms are synchronised already: their buffers are the same everywhere.
            options: dict[str, Any] = {_buffers_option(): False, "gradient_as_bucket_view": True}
            # Otherwise gradients are arranged anew after the first backward pass, of a resumed run too, and more than
            # two processes then add in another order: a resumed run would not be the same to the bit.
            options["find_unused_parameters"] = world_size > 2 and device == "cpu"
            with self._making():
                self._forward = DistributedDataParallel(self._forward, **options)

    def _making(self) -> AbstractContextManager[None]:
        """What DistributedDataParallel is made in."""
        return nullcontext()

    def close(self) -> None:
        """Give back what the device has recorded: at a run's end, before the processes part."""

    def _settings(self) -> dict[str, Any]:
        """What a subclass's constructor takes besides."""
        return {}

    def _functions(self) -> tuple[Embed, Loss]:
        """The two halves of the forward pass, which a subclass may compile."""
        method = self.method

        def embed(views: tuple[Tensor, ...]) -> tuple[Any, Any]:
            return method.embed(views), method.target(views)

        return embed, self._replacement or method.loss

    def _terms(self, embeddings: Any, targets: Any) -> Terms:
        """The loss, as a stage of a trace unless another stands in for it."""
        with record_function(stages.LOSS) if self._replacement is None else nullcontext():
            return self._loss(embeddings, targets)

    def _averages_in_backward(self) -> bool:
        """Whether one forward and one backward pass make the step, so that gradients can be averaged in the latter."""
        return True

    def average_in_bf16(self) -> None:
        """Let the processes send each other gradients as bf16, rounded to 8 bits: half of what fp32 takes."""
        self._in_bf16 = True
        if isinstance(self._forward, DistributedDataParallel):
            # Not torch's bf16_compress_hook, which refuses gloo. Unannotated: torch compares types, not their names.
            self._forward.register_comm_hook(self._world_size, lambda world, bucket: _average_in_bf16(bucket, world))

    def replaced(
        self, *, updater: Updater | None = None, loss: Loss | None = None, world_size: int | None = None
    ) -> Self:
        """The same step with another updater or loss in it, or among another number of processes.

        Among several, of one method only one step can be used: DistributedDataParallel hooks into its parameters.
        """
        step = type(self)(
            self.method,
            updater or self.updater,
            device=self._device,
            precision=self.precision,
            world_size=self._world_size if world_size is None else world_size,
            loss=loss or self._replacement,
            **self._settings(),
        )
        if self._in_bf16:
            step.average_in_bf16()
        return step

    def autocast(self) -> torch.autocast | nullcontext[None]:
        """The precision in which the forward pass runs."""
        return autocast(self._device, self.precision)

    def __call__(self, batch: Batch, scalars: Mapping[str, float]) -> Terms:
        """``scalars`` holds this step's learning rate as "lr", and the method's schedules."""
        self.updater.set_rates(scalars)
        with self._dropping(batch):
            return self._run(batch.inputs, scalars)

    def _dropping(self, batch: Batch) -> AbstractContextManager[None]:
        """What stochastic depth leaves out of a step on ``batch``, drawn on the host before the step is run."""
        return self._drops.during(drawn(self._drops, batch)) if self._drops else nullcontext()

    def _run(self, views: tuple[Tensor, ...], scalars: Mapping[str, float | Tensor]) -> Terms:
        """Everything of a step that the device does."""
        self.updater.begin()
        terms = self._gradients(views)
        update = self.updater(terms.total.detach())
        self.method.after_update(scalars, update.finite)
        clipped = {} if update.norm is None else {CLIPPED.name: update.norm}
        return Terms(update.total, {**terms.parts, **clipped})

    def _gradients(self, views: tuple[Tensor, ...]) -> Terms:
        """The terms, and each parameter's gradient in its place."""
        with self.autocast():
            terms: Terms = self._forward(views)
        self.updater.backward(terms.total)
        return terms


def _average_in_bf16(bucket: Any, world_size: int) -> torch.futures.Future[Tensor]:
    """A ``GradBucket`` over the processes; the future holds it in its own precision."""
    sent = bucket.buffer().to(torch.bfloat16).div_(world_size)
    work = dist.all_reduce(sent, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]))


def _buffers_option() -> str:
    """DistributedDataParallel's, which torch 2.13 renamed."""
    known = signature(DistributedDataParallel).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
