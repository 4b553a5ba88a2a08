"""From crops to augmented views on the device, one batch ahead of the step where the device allows it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch.profiler import record_function

from fastvicreg import stages
from fastvicreg.contracts import Crops, Cursor, Engine, Plan, Views
from fastvicreg.kernels.augment import IMPLEMENTATIONS, augment
from fastvicreg.registry import resolve

AHEAD = 2
"""Steps that the host may be ahead of the device."""


@dataclass(frozen=True)
class Fed:
    """A batch ready for the step, and the seconds the host waited for its crops."""

    views: Views
    data_wait: float


class Feed:
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
    ) -> None:
        """``UserError`` where ``impl`` names no implementation of the photometric kernel."""
        if impl != "auto":
            resolve("augment implementation", impl, IMPLEMENTATIONS)
        self._engine = engine
        self._plan = plan
        self._device = torch.device(device)
        self._dtype = dtype
        self._impl = impl
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def epoch(self, start: Cursor) -> Generator[Fed, None, None]:
        """From ``start`` to the end of its epoch."""
        crops = self._engine.batches(start)
        launched: deque[torch.Event] = deque()
        while True:
            if self._stream is not None:
                # Without a bound the host would queue steps, and their views' memory, as far as its log reaches.
                launched.append(torch.cuda.current_stream(self._device).record_event())
                if len(launched) > AHEAD:
                    launched.popleft().synchronize()
            began = time.perf_counter()
            with record_function(stages.DATA_WAIT):
                batch = next(crops, None)
            if batch is None:
                return
            data_wait = time.perf_counter() - began
            yield Fed(self._stage(batch), data_wait)

    def _stage(self, crops: Crops) -> Views:
        params_BVP = self._plan.photometric(crops.cursor.epoch, crops.slot_B)
        if self._stream is None:
            return self._augment(crops, crops.crops_BVHWC, params_BVP)
        # The generator resumes after the step's launch, so this work overlaps the step's on the device.
        with torch.cuda.stream(self._stream):
            with record_function(stages.H2D):
                crops_BVHWC = crops.crops_BVHWC.to(self._device, non_blocking=True)
            views = self._augment(crops, crops_BVHWC, params_BVP)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for view in views.views:
            view.record_stream(current)
        return views

    def _augment(self, crops: Crops, crops_BVHWC: torch.Tensor, params_BVP: torch.Tensor) -> Views:
        with record_function(stages.AUGMENT):
            views = augment(crops_BVHWC, params_BVP, dtype=self._dtype, impl=self._impl)
        return Views(views, crops.index_B, crops.label_B, crops.cursor)
