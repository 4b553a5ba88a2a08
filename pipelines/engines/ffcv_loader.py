"""FFCV's Loader with our operation and our order, and the threads that run it: the only file that imports FFCV.

FFCV's own way to use several cores is a parallel loop of numba's inside each batch, whose threads spin against torch's
between batches. Here every worker is an ``EpochIterator`` of its own over a share of each batch; all run the Loader's
one compiled pipeline with the GIL released. Written against FFCV 1.0.2.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from ffcv.libffcv import lib
from ffcv.loader import loader as ffcv_loader_module
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.loader.loader import Loader, OrderOption
from ffcv.memory_managers.os_cache import OSCacheContext, OSCacheManager
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.pipeline_spec import PipelineSpec
from ffcv.pipeline.state import State
from ffcv.reader import Reader
from numpy.typing import NDArray

from fastvicreg.pipelines.engines.ffcv_compiled import cut_views, link
from fastvicreg.pipelines.engines.workload import ViewGroup
from fastvicreg.stalls import StalledError, waited, whereabouts

PIXEL, FLAG = np.dtype(np.uint8), np.dtype(np.bool_)
Share = tuple[tuple[NDArray[np.uint8], ...], NDArray[np.bool_]]
"""(crops_BVSSC of each group of views, done_B) of a thread's part of a batch, valid until its next part is taken."""


class MendedFile(OSCacheManager):
    """FFCV's, but for its marking numba's type of flat byte arrays read-only for all that the process compiles."""

    def compile_reader(self) -> Callable[..., Any]:
        def read(address, state):  # type: ignore[no-untyped-def]
            return state[0][address : address + state[2][np.searchsorted(state[1], address)]]

        return Compiler.compile(read)


class MappedFile(MendedFile):
    """Without the tables that only FFCV's own orders read: at ImageNet's size 3 s and 600 MB a process."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        table = reader.alloc_table[np.argsort(reader.alloc_table["ptr"])]
        self.ptrs, self.sizes = table["ptr"].copy(), table["size"].copy()
        self.context = OSCacheContext(self)


def mend_ffcv() -> None:
    """Keep FFCV's Loader from breaking what numba compiles after it; before the first Loader is made."""
    ffcv_loader_module.OSCacheManager = MendedFile


class CutViews(Operation):
    """Decodes a sample once and cuts all its views; takes job_BJ in place of indices, gives a ``Share``."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: Sequence[ViewGroup] = (ViewGroup(slice(0, 1), 1),)  # set before each epoch

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        shapes = [(group.count, group.side, group.side, 3) for group in self.groups]
        queries = (AllocationQuery((), FLAG), *(AllocationQuery(shape, PIXEL) for shape in shapes))
        return replace(previous_state, jit_mode=True, shape=shapes[0], dtype=PIXEL), queries

    def generate_code(self) -> Callable[..., Any]:
        # FFCV compiles this at every start, and with fastmath; what it calls is compiled without, and cached.
        def cut(batch_indices, memory, metadata, storage_state):  # type: ignore[no-untyped-def]
            cut_views(
                batch_indices, metadata, storage_state[0], storage_state[1], storage_state[2], memory[0], memory[1:]
            )
            return memory

        return cut


class Worker(EpochIterator):
    """A thread that delivers its share of every batch, in order; started by its constructor."""

    def __init__(
        self,
        loader: Loader,
        slot_N: NDArray[np.int64],
        share: int,
        jobs: Callable[[NDArray[np.int64]], NDArray[np.int64]],
        intact: Callable[[int], bool],
        stall: float,
    ) -> None:
        """``slot_N`` are its samples of all batches, ``share`` of them a batch; the last batch may have fewer.

        ``jobs`` gives the samples' job_BJ; ``intact`` whether a sample's bytes are the recorded ones; ``stall`` is how
        many seconds a share is waited for.
        """
        self._stall = stall
        self._jobs, self._intact = jobs, intact
        self.error: BaseException | None = None
        loader.batch_size = share  # the constructor allocates and cuts the order by it
        super().__init__(loader, slot_N)  # type: ignore[arg-type]

    def run(self) -> None:
        try:
            if stream := getattr(self, "current_stream", None):  # FFCV's, where torch finds a GPU, whatever we train on
                torch.cuda.set_device(stream.device)  # a thread begins on device 0, and would open a context there
            super().run()
        except BaseException as error:  # handed to whoever waits for this thread's next share
            self.error = error

    def run_pipeline(self, b_ix: int, batch_indices: NDArray[np.int64], batch_slot: int, cuda_event: Any) -> Share:
        ((done_B, *groups),) = super().run_pipeline(b_ix, self._jobs(batch_indices), batch_slot, cuda_event)
        for at, slot in enumerate(batch_indices.tolist()):
            if not self._intact(slot):
                done_B[at] = False
        return tuple(groups), done_B

    def take(self) -> Share:
        """The next share; ``RuntimeError`` where the thread has ended, ``StalledError`` where none comes in time."""
        came: list[Any] = []

        def ready(timeout: float) -> bool:
            alive = self.is_alive()  # asked first: what it leaves at its end is there when it has ended
            with contextlib.suppress(queue.Empty):
                came.append(self.output_queue.get(timeout=timeout if alive else 0.0))
            return bool(came) or not alive

        if not waited(ready, self._stall):
            seconds, self._stall = self._stall, 0.1  # it is not waited for a second time
            raise StalledError("a loader thread of the ffcv pipeline", seconds, whereabouts(self.name))
        if self.error and not came:
            raise RuntimeError(f"a loader thread of the ffcv pipeline ended with {self.error!r}.") from self.error
        if not came or came[0] is None:
            raise RuntimeError("a loader thread of the ffcv pipeline ended before its epoch did.")
        return came[0][1]

    def stop(self) -> None:
        """End the thread after the share it works on."""
        self.close()
        until = time.monotonic() + self._stall
        while self.is_alive() and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):  # a full queue would hold it
                self.output_queue.get(timeout=0.02)


class FFCVLoader:
    """FFCV's Loader on the image field of a ``.beton``, its pipeline compiled."""

    def __init__(self, path: Path, field: str, other_fields: Sequence[str], prefetch: int) -> None:
        link(lib)
        self._operation = CutViews()
        image: dict[str, Any] = {field: PipelineSpec(field, decoder=self._operation)}
        ffcv_loader_module.OSCacheManager = MappedFile  # the Loader takes no other by argument
        try:
            self._loader = Loader(
                str(path),
                batch_size=1,
                num_workers=_harmless_threads(),
                os_cache=True,
                order=OrderOption.SEQUENTIAL,
                pipelines=image | dict.fromkeys(other_fields),  # type: ignore[arg-type]  # None: not read
                drop_last=False,
                batches_ahead=max(1, prefetch - 1),
            )
        finally:
            mend_ffcv()

    def workers(
        self,
        order: Sequence[Sequence[NDArray[np.int64]]],
        groups: Sequence[ViewGroup],
        jobs: Callable[[NDArray[np.int64]], NDArray[np.int64]],
        intact: Callable[[int], bool],
        stall: float,
    ) -> list[Worker]:
        """Started threads; ``order[w]`` are the shares of thread w, all as long as its first but the last one."""
        self._operation.groups = groups
        self._loader.num_workers = _harmless_threads()
        started: list[Worker] = []
        try:
            for shares in order:
                started.append(Worker(self._loader, np.concatenate(shares), len(shares[0]), jobs, intact, stall))
        except BaseException:
            for worker in started:
                worker.stop()
            raise
        return started


def _harmless_threads() -> int:
    """FFCV sets torch's and numba's threads to its number of workers: the number that changes nothing for torch."""
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
