"""The native engine: threads that decode each image once with the GIL released, then cut all its views from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from fastvicreg import stages
from fastvicreg.contracts import Crops, Cursor, Fault, Plan, ReadAhead, Source
from fastvicreg.errors import UserError
from fastvicreg.kernels.resample import resampler
from fastvicreg.pipelines.decode import DecodeError, decode_sample
from fastvicreg.pipelines.engines.annotate import in_worker
from fastvicreg.pipelines.engines.batching import Batching
from fastvicreg.pipelines.engines.memory import PixelMemory
from fastvicreg.pipelines.engines.options import EngineOptions
from fastvicreg.pipelines.faults import FaultLog, Replaced
from fastvicreg.pipelines.manifest import ChangedError

NEIGHBOURS = 100
"""Samples tried in place of one that cannot be decoded."""


class NativeEngine:
    """Works with any source; needs nothing but pip packages.

    Beside the batch in use ``prefetch`` more are being decoded or wait decoded: memory is bounded by
    (prefetch + 1) x batch x views x size x size x 3 bytes.
    """

    def __init__(self, source: Source, plan: Plan, batching: Batching, options: EngineOptions) -> None:
        self._source = source
        self._plan = plan
        self._batching = batching
        self._workers = options.threads
        self._prefetch = options.prefetch
        self._memory = PixelMemory(pin=options.pin)
        self._resample = resampler(options.resample)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="fastvicreg-native")
        self.fault_log = FaultLog(options.budget)

    def batches_per_epoch(self, epoch: int) -> int:
        return self._batching.batches_per_epoch

    def faults(self) -> Mapping[str, int]:
        return self.fault_log.counts()

    def close(self) -> None:
        """End the threads; what is not yet decoded is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(self, start: Cursor) -> Iterator[Crops]:
        """From ``start`` to the end of its epoch. ``UserError`` when the fault budget is exceeded."""
        self.fault_log.start_epoch()
        order = self._plan.order(start.epoch)
        pending: deque[tuple[Crops, list[Future[list[Replaced]]]]] = deque()
        ahead = iter(range(start.batch, self.batches_per_epoch(start.epoch)))
        try:
            while True:
                while len(pending) <= self._prefetch and (batch := next(ahead, None)) is not None:
                    pending.append(self._submit(Cursor(start.epoch, batch), order))
                if not pending:
                    return
                crops, parts = pending.popleft()
                replaced = [entry for part in parts for entry in part.result()]
                self.fault_log.deliver(len(crops.slot_B), replaced)
                yield crops
        finally:
            for _, parts in pending:
                for part in parts:
                    part.cancel()

    def _submit(self, cursor: Cursor, order: torch.Tensor) -> tuple[Crops, list[Future[list[Replaced]]]]:
        slot_B = self._batching.slots(order, cursor.batch)
        count, side = len(slot_B), self._plan.size(cursor.epoch)
        if isinstance(self._source, ReadAhead):
            self._source.read_ahead(slot_B)
        shape = (count, self._plan.views, side, side, 3)
        crops = Crops(
            self._memory.take(shape),
            slot_B,
            slot_B.clone(),
            torch.empty(count, dtype=torch.int64),
            torch.zeros(count, dtype=torch.uint8),
            cursor,
        )
        # Chunks small enough that the threads end a batch together, large enough that the pool's overhead vanishes.
        chunk = max(1, min(16, count // (4 * self._workers)))
        work = partial(self.fill, crops, crops.crops_BVHWC.numpy())
        return crops, [self._pool.submit(work, at, min(at + chunk, count)) for at in range(0, count, chunk)]

    def fill(self, crops: Crops, out_BVHWC: np.ndarray, first: int, last: int) -> list[Replaced]:
        """Decode and crop the samples ``first`` to ``last`` of a batch into their places; returns the faulty ones."""
        replaced = []
        labels = []
        epoch, support = crops.cursor.epoch, self._plan.support
        wh_12 = torch.empty((1, 2), dtype=torch.int64)
        shape_12 = wh_12.numpy()
        slots_B1 = crops.slot_B[first:last].split(1)
        for at, slot, slot_1 in zip(range(first, last), crops.slot_B[first:last].tolist(), slots_B1, strict=True):
            with in_worker(stages.DECODE):
                index, image_HWC, fault, reason = self._decode(slot)
            shape_12[0] = image_HWC.shape[1::-1]
            box_1V4, flip_1V = self._plan.boxes(epoch, slot_1, wh_12)
            with in_worker(stages.RESAMPLE):
                self._resample(image_HWC, box_1V4.numpy()[0], flip_1V.numpy()[0], out_BVHWC[at], support)
            labels.append(self._source.label(index))
            if fault:
                crops.index_B[at] = index
                crops.fault_B[at] = fault
                replaced.append(Replaced(at, fault, self._source.name(slot), reason))
        crops.label_B[first:last] = torch.tensor(labels, dtype=torch.int64)
        return replaced

    def _decode(self, slot: int) -> tuple[int, np.ndarray, Fault, str]:
        """(index, pixels) of the sample or of the next one that can be decoded, and why it is not the sample itself."""
        first, first_reason = Fault.NONE, ""
        total = len(self._source)
        for place in range(slot, slot + min(NEIGHBOURS, total)):
            index = place % total
            try:
                return index, decode_sample(self._source, index), first, first_reason
            except ChangedError as error:
                fault, reason = Fault.CHANGED, str(error)
            except OSError as error:
                fault, reason = Fault.UNREADABLE, error.strerror or str(error)
            except DecodeError as error:
                fault, reason = error.fault, str(error)
            if not first:
                first, first_reason = fault, reason
        name = self._source.name(slot)
        raise UserError(f"neither {name} ({first_reason}) nor any of the {NEIGHBOURS} samples after it can be read.")
