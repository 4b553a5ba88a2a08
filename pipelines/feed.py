"""From crops to augmented views on the device, one batch ahead of the step where the device allows it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from fastvicreg import stages
from fastvicreg.contracts import Batch, Crops, Cursor, Engine, Fed, Plan
from fastvicreg.kernels.augment import augment, known

AHEAD = 2
"""Steps that the host may be ahead of the device."""

Kernel = Callable[..., tuple[Tensor, ...]]
"""``kernels.augment.augment``, or what stands in for it in a measurement."""


@dataclass(frozen=True)
class DataWait:
    """What waiting for a batch's crops cost.

    On CUDA the host runs ahead: its own wait costs nothing while the device still works on an earlier step. There the
    device tells, between the end of its work and the moment at which the crops were there, how long it stood idle.
    """

    host: float  # seconds
    idle: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def seconds(self) -> float:
        """Lost by the step. On CUDA only once the device has done that step, which this does not wait for."""
        if self.idle is None:
            return self.host
        worked, arrived = self.idle
        return min(self.host, max(0.0, worked.elapsed_time(arrived) / 1e3))


class AugmentedFeed:
    """Joins an engine with the photometric kernel.

    On CUDA the copy and the augmentation run on a stream of their own while the step computes, ``AHEAD`` batches ahead
    at most; on the CPU they run inline, since there they would only take cores from the step.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        impl: str = "auto",
        kernel: Kernel = augment,
    ) -> None:
        """``UserError`` where ``impl`` names no implementation of the photometric kernel."""
        known(impl)
        self._engine = engine
        self._plan = plan
        self._device = torch.device(device)
        self._dtype = dtype
        self._impl = impl
        self._kernel = kernel
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def replaced(self, *, engine: Engine | None = None, kernel: Kernel | None = None) -> AugmentedFeed:
        """The same feed with another engine or photometric kernel in it."""
        return AugmentedFeed(
            engine or self._engine,
            self._plan,
            device=str(self._device),
            dtype=self._dtype,
            impl=self._impl,
            kernel=kernel or self._kernel,
        )

    def epoch(self, start: Cursor) -> Generator[Fed, None, None]:
        """From ``start`` to the end of its epoch."""
        crops = self._engine.batches(start)
        launched: deque[torch.cuda.Event] = deque()
        while True:
            if self._stream is not None:
                # Without a bound the host would queue steps, and their views' memory, as far as its log reaches.
                launched.append(_now(torch.cuda.current_stream(self._device)))
                if len(launched) > AHEAD:
                    launched.popleft().synchronize()
            began = time.perf_counter()
            # Under the stream of copies: an engine that decodes on the device waits for what reads its last crops, the
            # augmentation there, and not for the step that the current stream holds.
            with record_function(stages.DATA_WAIT), self._copying():
                cut = next(crops, None)
            if cut is None:
                return
            waited = time.perf_counter() - began
            # On the stream of copies, which is idle until the crops are there: it sees their arrival as it happens.
            idle = (launched[-1], _now(self._stream)) if self._stream is not None else None
            yield Fed(self._stage(cut), DataWait(waited, idle))

    def _stage(self, crops: Crops) -> Batch:
        params_BVP = self._plan.photometric(crops.cursor.epoch, crops.slot_B)
        if self._stream is None:
            return self._augment(crops, crops.groups, crops.others, params_BVP)
        # The generator resumes after the step's launch, so this work overlaps the step's on the device.
        with self._copying():
            with record_function(stages.H2D):
                groups = tuple(group.to(self._device, non_blocking=True) for group in crops.groups)
                others = tuple(view.to(self._device, non_blocking=True) for view in crops.others)
            batch = self._augment(crops, groups, others, params_BVP)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for part in batch.inputs:
            part.record_stream(current)
        return batch

    def _copying(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _augment(
        self, crops: Crops, groups: tuple[Tensor, ...], others: tuple[Tensor, ...], params_BVP: Tensor
    ) -> Batch:
        views: list[Tensor] = []
        with record_function(stages.AUGMENT):
            for group_BVHWC in groups:
                own_BVP = params_BVP[:, len(views) : len(views) + group_BVHWC.shape[1]]
                views += self._kernel(group_BVHWC, own_BVP, dtype=self._dtype, impl=self._impl)
            views += [as_view(view, self._dtype) for view in others]
        places_BV5 = crops.places_BV5
        if places_BV5 is not None:
            places_BV5 = places_BV5.to(self._device, non_blocking=True)
        return Batch(tuple(views), crops.index_B, crops.label_B, crops.cursor, places_BV5)


def as_view(other: Tensor, dtype: torch.dtype) -> Tensor:
    """What is no image as an encoder takes it: a spectrogram (B, 1, M, F) with its channel three times, in ``dtype``;
    a waveform in ``dtype``; words as they are."""
    if not other.is_floating_point():
        return other
    if other.ndim == 4:
        return other.to(dtype).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    return other.to(dtype)


def _now(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event
