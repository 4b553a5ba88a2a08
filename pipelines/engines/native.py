"""The native engine: threads that decode each image once with the GIL released, then cut all its views from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from fastvicreg.contracts import Crops
from fastvicreg.pipelines.engines.engine import Delivery
from fastvicreg.pipelines.engines.host import HostCutter
from fastvicreg.pipelines.engines.workload import Epoch, Workload
from fastvicreg.pipelines.faults import Replaced
from fastvicreg.stalls import StalledError, waited, whereabouts

THREADS = "fastvicreg-native"


class NativeBackend:
    """Works with any source; needs nothing but pip packages.

    Beside the batch in use ``prefetch`` more are being decoded or wait decoded: memory is bounded by
    (prefetch + 1) x batch x the sum over views of size x size x 3 bytes.
    """

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._cutter = HostCutter(work)
        self._workers = work.options.threads
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix=THREADS)
        self._given_up = False

    def close(self) -> None:
        self._pool.shutdown(wait=not self._given_up, cancel_futures=True)

    def deliver(self, epoch: Epoch) -> Generator[Delivery, None, None]:
        pending: deque[tuple[Crops, list[Future[list[Replaced]]]]] = deque()
        ahead = iter(epoch.batches)
        try:
            while True:
                while len(pending) <= self._work.options.prefetch and (batch := next(ahead, None)) is not None:
                    pending.append(self._submit(epoch, batch))
                if not pending:
                    return
                crops, parts = pending.popleft()
                yield crops, [entry for part in parts for entry in self._result(part)]
        finally:
            for _, parts in pending:
                for part in parts:
                    part.cancel()

    def _result(self, part: Future[list[Replaced]]) -> list[Replaced]:
        if not waited(lambda timeout: bool(wait([part], timeout).done), self._work.options.stall):
            self._given_up = True
            names = ", ".join(sorted(self._cutter.under_way()))
            raise StalledError("the native pipeline", self._work.options.stall, f"{names}; {whereabouts(THREADS)}")
        return part.result()

    def _submit(self, epoch: Epoch, batch: int) -> tuple[Crops, list[Future[list[Replaced]]]]:
        slot_B = epoch.slots(batch)
        self._work.read_ahead(slot_B)
        crops = self._work.empty(epoch.cursor(batch), slot_B)
        count = len(slot_B)
        # Chunks small enough that the threads end a batch together, large enough that the pool's overhead vanishes.
        chunk = max(1, min(16, count // (4 * self._workers)))
        work = partial(self._cutter.fill, crops, [group.numpy() for group in crops.groups])
        return crops, [self._pool.submit(work, at, min(at + chunk, count)) for at in range(0, count, chunk)]
