"""The ffcv engine: FFCV's Loader decodes each image of a ``.beton`` once and cuts all its views, equal to native's.

What its threads could not decode, or whose bytes have changed, goes through the host's path, as native's does: the same
neighbour, the same count, never stale pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvicreg.contracts import Cursor
from fastvicreg.errors import UserError
from fastvicreg.kernels.resample.windows import windows_of
from fastvicreg.pipelines.engines.data import require_format
from fastvicreg.pipelines.engines.engine import Delivery
from fastvicreg.pipelines.engines.host import HostCutter, placed
from fastvicreg.pipelines.engines.workload import Epoch, Workload
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.manifest import digest

if TYPE_CHECKING:
    from fastvicreg.pipelines.engines.ffcv_loader import FFCVLoader, Worker

EXACT_RESAMPLERS = ("auto", "numba")


class FFCVBackend:
    """Reads a ``.beton`` with FFCV installed; order, crops, pixels, faults are the native engine's for any ``workers``.

    Memory: about (2 prefetch + 1) x batch x the sum over views of size x size x 3 bytes at most: FFCV reuses buffers.
    """

    def __init__(self, work: Workload) -> None:
        """``UserError`` where the source is no ``.beton``, FFCV is not installed, or ``resample`` is not numba's."""
        self._source = cast(BetonSource, require_format("ffcv", work.source, "beton"))
        if (resample := work.options.resample) not in EXACT_RESAMPLERS:
            raise UserError(f"--kernel resample={resample}: the ffcv pipeline cuts with numba's; give resample=numba.")
        self._work = work
        self._plan = work.plan
        self._workers = work.options.threads
        self._cutter = HostCutter(work)
        self._loader = _open_loader(self._source, work.options.prefetch)

    def close(self) -> None:
        """Nothing: an epoch's threads end with it."""

    def deliver(self, epoch: Epoch) -> Generator[Delivery, None, None]:
        """See ``Backend.deliver``; ``RuntimeError``: a thread of the loader has ended; ``StalledError``: it hangs."""
        if not epoch.batches:
            return
        shares_of_batch = [np.array_split(epoch.slots(batch).numpy(), self._workers) for batch in epoch.batches]
        # The first shares are the longest, so a batch smaller than the threads leaves the last of them without work.
        shares_of_worker = [[s for s in shares if len(s)] for shares in zip(*shares_of_batch, strict=True)]
        workers = self._loader.workers(
            [shares for shares in shares_of_worker if shares],
            epoch.groups,
            lambda slot_B: self._jobs(epoch, slot_B),
            self._intact,
            self._work.options.stall,
        )
        try:
            for batch, shares in zip(epoch.batches, shares_of_batch, strict=True):
                yield self._collect(epoch.cursor(batch), shares, workers)
        finally:
            for worker in workers:
                worker.close()  # all of them first, so that they end together
            for worker in workers:
                worker.stop()

    def _jobs(self, epoch: Epoch, slot_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """job_BJ of ``ffcv_compiled``: the plan's boxes as windows, drawn from the sizes the metadata names.

        A sample beyond the end of a file that was cut is left to the host, which counts it: to read there would end the
        process.
        """
        from fastvicreg.pipelines.engines.ffcv_compiled import HOST, SAMPLE, jobs

        wh_B2, box_BV4, flip_BV = self._boxes(epoch.number, slot_B)
        support = self._plan.support
        window_BVA4 = [
            np.concatenate([windows_of(width, height, box_V4[g.views], g.count, g.side, support) for g in epoch.groups])
            for (width, height), box_V4 in zip(wh_B2.tolist(), box_BV4.numpy(), strict=True)
        ]
        job_BJ = jobs(slot_B, np.stack(window_BVA4), flip_BV.numpy())
        job_BJ[~self._source.whole(slot_B), SAMPLE] = HOST
        return job_BJ

    def _boxes(self, epoch: int, slot_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        """(wh_B2, box_BV4, flip_BV): the sizes that the metadata names, and the plan's choices by them."""
        wh_B2 = np.array([self._source.size(slot) for slot in slot_B.tolist()], np.int64).reshape(-1, 2)
        return wh_B2, *self._plan.boxes(epoch, torch.from_numpy(slot_B), torch.from_numpy(wh_B2))

    def _intact(self, slot: int) -> bool:
        """Whether the sample's bytes are those that the manifest, where there is one, has recorded."""
        recorded = self._source.expected_hash(slot)
        try:
            return recorded is None or digest(self._source.stored(slot)) == recorded
        except OSError:  # the file was cut: the host's path tells of it
            return False

    def _collect(self, cursor: Cursor, shares: list[NDArray[np.int64]], workers: list[Worker]) -> Delivery:
        crops = self._work.empty(cursor, torch.from_numpy(np.concatenate(shares)))
        out = [group.numpy() for group in crops.groups]
        replaced = []
        first = 0
        for share, worker in zip(filter(len, shares), workers, strict=False):
            cut, done_B = worker.take()
            for group_BVHWC, cut_BVHWC in zip(out, cut, strict=True):
                group_BVHWC[first : first + len(share)] = cut_BVHWC
            if crops.places_BV5 is not None:
                _, *own = self._boxes(cursor.epoch, share[done_B])
                crops.places_BV5[first + torch.from_numpy(np.flatnonzero(done_B))] = placed(*own)
            for at in np.flatnonzero(~done_B).tolist():
                replaced += self._cutter.fill(crops, out, first + at, first + at + 1)
            first += len(share)
        assert first == len(crops.slot_B), (first, len(crops.slot_B))
        return crops, replaced


def _open_loader(source: BetonSource, prefetch: int) -> FFCVLoader:
    # FFCV starts numba's threads when it is imported. With TBB, numba's first choice, a process that forks never ends.
    if numba.config.THREADING_LAYER == "default":  # type: ignore[attr-defined]
        numba.config.THREADING_LAYER = "omp"  # type: ignore[attr-defined]
    with _torch_threads_kept():
        try:
            from fastvicreg.pipelines.engines.ffcv_loader import FFCVLoader
        except ImportError as error:
            raise UserError(
                f"--pipeline ffcv needs FFCV, which does not import ({error}): fastvicreg doctor shows how to install "
                "it; --pipeline native reads the same file."
            ) from error
        field = source.layout.image
        others = [name for name, _ in source.layout.fields if name != field]
        return FFCVLoader(source.path, field, others, prefetch)


@contextlib.contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Importing FFCV sets torch's threads to one."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
