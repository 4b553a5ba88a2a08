"""The engine that the rest of the project sees: a backend's batches, with their faults counted and their end kept."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Protocol

from fastvicreg.contracts import Crops, Cursor, FaultReport
from fastvicreg.errors import UserError
from fastvicreg.pipelines.engines.workload import Epoch, Workload
from fastvicreg.pipelines.faults import FaultLog, Replaced

Delivery = tuple[Crops, list[Replaced]]
"""A batch, and the samples replaced in it."""

ENDED = (
    "this epoch was ended by a later one of the same loader, or by close(), before its last batch: give each of two "
    "loops that run at once a loader of its own."
)


class Backend(Protocol):
    """How one engine decodes and crops: all that it has of its own. Built from a ``Workload``."""

    def deliver(self, epoch: Epoch) -> Generator[Delivery, None, None]:
        """The epoch's batches in order; closing the generator ends what is under way."""
        ...

    def close(self) -> None:
        """End threads and let go of memory; no epoch is running any more."""
        ...


class BatchEngine:
    """``contracts.Engine`` over any backend."""

    def __init__(self, work: Workload, backend: Backend) -> None:
        self._work = work
        self._backend = backend
        self._faults = FaultLog(work.options.budget)
        self._running: Generator[Delivery, None, None] | None = None

    def batches_per_epoch(self, epoch: int) -> int:
        """The same in every epoch."""
        return self._work.batching.batches_per_epoch

    def batches(self, start: Cursor) -> Iterator[Crops]:
        """From ``start`` to the end of its epoch; ends an epoch that is still running.

        ``UserError`` when the fault budget is exceeded or a later epoch, or ``close``, has ended this one,
        ``RuntimeError`` where the backend has failed, ``StalledError`` where it hangs.
        """
        self._stop()
        self._faults.start_epoch()
        running = self._running = self._backend.deliver(self._work.epoch(start))
        try:
            for crops, replaced in running:
                self._faults.deliver(len(crops.slot_B), replaced)
                yield crops
                last = crops.cursor.batch + 1 == self.batches_per_epoch(start.epoch)
                if self._running is not running and not last:  # a silent end would pass for an epoch seen whole
                    raise UserError(ENDED)
        finally:
            running.close()

    def faults(self) -> FaultReport:
        """The samples replaced since the epoch's start, of the batches delivered."""
        return self._faults.report()

    def close(self) -> None:
        """End the threads; what they have decoded ahead is dropped."""
        self._stop()
        self._backend.close()

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()
