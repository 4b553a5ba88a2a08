"""The engine's part for pairs: any backend cuts the images, and the other members' views are made beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from fastvicreg import stages
from fastvicreg.contracts import Crops, Fault
from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import DecodeError
from fastvicreg.pipelines.engines.annotate import in_worker
from fastvicreg.pipelines.engines.engine import Backend, Delivery
from fastvicreg.pipelines.engines.workload import Epoch, Workload
from fastvicreg.pipelines.faults import Replaced, cause_of
from fastvicreg.pipelines.pairs.plan import PairPlan
from fastvicreg.pipelines.pairs.source import PairedSource
from fastvicreg.pipelines.rng import Purpose, fold_in, stream
from fastvicreg.stalls import StalledError, waited, whereabouts

THREADS = "fastvicreg-pairs"


class _Unread(NamedTuple):
    """Why a sample's members give no views."""

    fault: Fault
    reason: str


_Views = list["list[np.ndarray] | _Unread"]
"""A sample's views, one a member, or why there are none."""


class OrderBackend:
    """Batches without pixels, for pairs without an image."""

    def __init__(self, work: Workload) -> None:
        self._work = work

    def close(self) -> None:
        """There is nothing to let go of."""

    def deliver(self, epoch: Epoch) -> Generator[Delivery, None, None]:
        for batch in epoch.batches:
            yield self._work.empty(epoch.cursor(batch), epoch.slots(batch)), []


def images_of(name: str, build: Callable[[Workload], Backend], work: Workload, source: PairedSource) -> Backend:
    """The backend called ``name`` for the pairs' images; ``UserError`` where they have none and it reads only these."""
    if source.images is not None:
        return build(work)
    if name not in ("native", "synthetic"):
        raise UserError(f"--pipeline {name} reads images, and this pair has none: give --pipeline native.")
    return OrderBackend(work)


class PairedBackend:
    """Adds ``Crops.others``: a batch's other members, read and decoded by threads while earlier batches are used.

    Where one of a sample's members cannot be read, the whole pair is replaced by the next one of its batch. Beside what
    the images' backend holds decoded, ``prefetch`` batches of it wait here for their other members.
    """

    def __init__(self, work: Workload, source: PairedSource, images: Backend) -> None:
        self._work = work
        self._members = source.others
        self._images = images
        self._pool = ThreadPoolExecutor(work.options.threads, thread_name_prefix=THREADS)
        self._given_up = False

    def close(self) -> None:
        self._pool.shutdown(wait=not self._given_up, cancel_futures=True)
        self._images.close()

    def deliver(self, epoch: Epoch) -> Generator[Delivery, None, None]:
        pending: deque[tuple[Delivery, list[Future[_Views]]]] = deque()
        images = self._images.deliver(epoch)
        try:
            while True:
                while len(pending) <= self._work.options.prefetch and (cut := next(images, None)) is not None:
                    pending.append((cut, self._submit(cut[0])))
                if not pending:
                    return
                (crops, replaced), parts = pending.popleft()
                for group_BVHWC in crops.groups:
                    if group_BVHWC.is_cuda:  # it is read after the images' backend was asked for later ones
                        group_BVHWC.record_stream(torch.cuda.current_stream(group_BVHWC.device))
                yield self._joined(crops, replaced, [self._result(part) for part in parts])
        finally:
            images.close()
            for _, parts in pending:
                for part in parts:
                    part.cancel()

    def _submit(self, crops: Crops) -> list[Future[_Views]]:
        for member in self._members:
            member.read_ahead(crops.index_B)
        count, threads = len(crops.index_B), self._work.options.threads
        chunk = max(1, min(16, count // (4 * threads)))
        return [self._pool.submit(self._views, crops, at, min(at + chunk, count)) for at in range(0, count, chunk)]

    def _views(self, crops: Crops, first: int, last: int) -> _Views:
        """Every member's view of these samples; in place of one that cannot be read why."""
        plan = self._work.plan
        assert isinstance(plan, PairPlan)
        # A compiled function gives a key back as Python's integer, and takes none above 63 bits.
        key = np.uint64(stream(plan.seed, crops.cursor.epoch, Purpose.MEMBER))
        made: _Views = []
        slots, indices = crops.slot_B[first:last].tolist(), crops.index_B[first:last].tolist()
        for slot, index in zip(slots, indices, strict=True):
            with in_worker(stages.DECODE):
                try:
                    # One key for all members: two of the same sound are cut at the same place.
                    own = np.uint64(fold_in(key, slot))
                    made.append([self._view(at, index, own) for at in range(len(self._members))])
                except (OSError, DecodeError) as error:
                    made.append(_Unread(*cause_of(error)))
        return made

    def _view(self, at: int, index: int, key: np.uint64) -> np.ndarray:
        member = self._members[at]
        assert member.modality is not None
        return member.modality.view(member.encoded(index), key)

    def _result(self, part: Future[_Views]) -> _Views:
        if not waited(lambda timeout: bool(wait([part], timeout).done), self._work.options.stall):
            self._given_up = True
            raise StalledError("the reading of pairs", self._work.options.stall, whereabouts(THREADS))
        return part.result()

    def _joined(self, crops: Crops, replaced: list[Replaced], parts: list[_Views]) -> Delivery:
        found = [one for part in parts for one in part]
        good = {at: one for at, one in enumerate(found) if not isinstance(one, _Unread)}
        bad = {at: one for at, one in enumerate(found) if isinstance(one, _Unread)}
        if bad and not good:
            name = self._name(int(crops.index_B[0]))
            raise UserError(f"none of the {len(bad)} pairs of a batch can be read ({name}: {bad[0].reason}).")
        donors = {at: next((one for one in good if one > at), min(good)) for at in bad}
        chosen = [good[donors.get(at, at)] for at in range(len(found))]
        others = tuple(
            torch.from_numpy(np.stack([one[member] for one in chosen])) for member in range(len(self._members))
        )
        if self._work.options.pin:
            others = tuple(view.pin_memory() for view in others)
        for at, why in bad.items():
            if not crops.fault_B[at]:
                replaced = [*replaced, Replaced(at, why.fault, self._name(int(crops.index_B[at])), why.reason)]
        _take(crops, donors, [why.fault for why in bad.values()])
        return replace(crops, others=others), replaced

    def _name(self, index: int) -> str:
        return self._members[-1].name(index)


def _take(crops: Crops, donors: dict[int, int], faults: list[Fault]) -> None:
    """Whole samples of the batch in place of others."""
    if not donors:
        return
    to, of = torch.tensor(list(donors)), torch.tensor(list(donors.values()))
    for group_BVHWC in crops.groups:
        group_BVHWC[to.to(group_BVHWC.device)] = group_BVHWC[of.to(group_BVHWC.device)]
    for own_B in (crops.index_B, crops.label_B):
        own_B[to] = own_B[of]
    crops.fault_B[to] = torch.tensor([int(fault) for fault in faults], dtype=torch.uint8)
