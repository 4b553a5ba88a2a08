"""The host's way from a sample to its crops, whatever the source or the fault: it defines what engines deliver."""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident

import numpy as np
import torch
from torch import Tensor

from fastvicreg import stages
from fastvicreg.contracts import Crops, Fault
from fastvicreg.errors import UserError
from fastvicreg.kernels.resample import resampler
from fastvicreg.pipelines.decode import DecodeError, decode_sample
from fastvicreg.pipelines.engines.annotate import in_worker
from fastvicreg.pipelines.engines.workload import Workload
from fastvicreg.pipelines.faults import Replaced, cause_of

NEIGHBOURS = 100
"""Samples tried in place of one that cannot be decoded."""


def placed(box_BV4: Tensor, flip_BV: Tensor) -> Tensor:
    """A plan's boxes and flips as ``Crops.places_BV5``."""
    return torch.cat((box_BV4.float(), flip_BV[..., None].float()), -1)


class HostCutter:
    """Decodes samples once, with the GIL released, and cuts all their views; may be called from many threads."""

    def __init__(self, work: Workload) -> None:
        """``UserError`` where the options name a resampler that is not known."""
        self._source = work.source
        self._plan = work.plan
        self._resample = resampler(work.options.resample)
        self._under_way: dict[int, int] = {}  # by thread

    def fill(self, crops: Crops, out: Sequence[np.ndarray], first: int, last: int) -> list[Replaced]:
        """Decode and crop the samples ``first`` to ``last`` of a batch into their places; returns the faulty ones.

        ``out`` is the memory of ``crops.groups``, or stands in for it where that is not the host's. ``UserError`` where
        neither a sample nor one of ``NEIGHBOURS`` after it can be read.
        """
        replaced = []
        epoch, support = crops.cursor.epoch, self._plan.support
        wh_12 = torch.empty((1, 2), dtype=torch.int64)
        shape_12 = wh_12.numpy()
        slots_B1 = crops.slot_B[first:last].split(1)
        for at, slot, slot_1 in zip(range(first, last), crops.slot_B[first:last].tolist(), slots_B1, strict=True):
            with in_worker(stages.DECODE):
                self._under_way[get_ident()] = slot
                index, image_HWC, fault, reason = self._decode(slot)
                del self._under_way[get_ident()]
            shape_12[0] = image_HWC.shape[1::-1]
            box_1V4, flip_1V = self._plan.boxes(epoch, slot_1, wh_12)
            if crops.places_BV5 is not None:
                crops.places_BV5[at] = placed(box_1V4, flip_1V)[0]
            with in_worker(stages.RESAMPLE):
                view = 0
                for group_BVHWC in out:
                    views = slice(view, view := view + group_BVHWC.shape[1])
                    self._resample(
                        image_HWC, box_1V4.numpy()[0, views], flip_1V.numpy()[0, views], group_BVHWC[at], support
                    )
            if fault:
                crops.index_B[at] = index
                crops.label_B[at] = self._source.label(index)
                crops.fault_B[at] = fault
                replaced.append(Replaced(at, fault, self._source.name(slot), reason))
        return replaced

    def under_way(self) -> set[str]:
        """The samples being read and decoded: where a thread is stuck, what it is stuck with."""
        return {self._source.name(slot) for slot in self._under_way.copy().values()}

    def _decode(self, slot: int) -> tuple[int, np.ndarray, Fault, str]:
        """(index, pixels) of the sample or of the next one that can be decoded, and why it is not the sample itself."""
        first, first_reason = Fault.NONE, ""
        total = len(self._source)
        for place in range(slot, slot + min(NEIGHBOURS, total)):
            index = place % total
            try:
                return index, decode_sample(self._source, index), first, first_reason
            except (OSError, DecodeError) as error:
                fault, reason = cause_of(error)
            if not first:
                first, first_reason = fault, reason
        name = self._source.name(slot)
        raise UserError(f"neither {name} ({first_reason}) nor any of the {NEIGHBOURS} samples after it can be read.")
