"""The fixed views that evaluation takes of members that are no images, in the source's order."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastvicreg.contracts import Fault, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.ahead import reading_in_order
from fastvicreg.pipelines.decode import DecodeError
from fastvicreg.pipelines.faults import FaultBudget, FaultLog, Replaced, cause_of
from fastvicreg.pipelines.feed import as_view
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.pairs.modalities import Modality
from fastvicreg.stalls import LIMIT

NEIGHBOURS = 100
"""Samples tried in place of one that cannot be read, as for images."""


class _Made(NamedTuple):
    """A sample's views, and why they are another's."""

    views: list[np.ndarray]
    fault: Fault
    reason: str


def member_views(
    source: Source,
    modality: Modality,
    *,
    device: str = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    budget: FaultBudget | None = None,
    stall: float = LIMIT,
) -> Generator[tuple[Tensor, Tensor, int]]:
    """(view on the device, label_B, samples replaced so far) a batch; of several captions the first.

    ``UserError`` where more samples are faulty than ``budget`` allows.
    """
    for views, index_B, faults in all_views(
        source, modality, batch_size=batch_size, workers=workers, budget=budget, first_alone=True, stall=stall
    ):
        label_B = torch.tensor([source.label(index) for index in index_B.tolist()])
        yield as_view(views.to(device), torch.float32), label_B, faults


def all_views(
    source: Source,
    modality: Modality,
    *,
    batch_size: int = 256,
    workers: int = 0,
    budget: FaultBudget | None = None,
    first_alone: bool = False,
    stall: float = LIMIT,
) -> Generator[tuple[Tensor, Tensor, int]]:
    """(views of the next ``batch_size`` samples, the sample of each view, samples replaced so far), on the host.

    Every caption of a sample, or the ``first_alone``.
    """
    log = FaultLog(budget)

    def views(index: int) -> _Made:
        ahead(index)
        return _views(source, modality, index)

    total, ahead = len(source), reading_in_order(source)
    with closing(in_order(views, range(total), workers=workers, name="fastvicreg-pairs", stall=stall)) as made:
        for at in range(0, total, batch_size):
            batch = list(itertools.islice(made, batch_size))
            replaced = [
                Replaced(place, one.fault, source.name(at + place), one.reason)
                for place, one in enumerate(batch)
                if one.fault
            ]
            log.deliver(len(batch), replaced)
            kept = [one.views[:1] if first_alone else one.views for one in batch]
            index = [at + place for place, views in enumerate(kept) for _ in views]
            stacked = torch.from_numpy(np.stack([view for views in kept for view in views]))
            yield stacked, torch.tensor(index), log.report().total


def _views(source: Source, modality: Modality, index: int) -> _Made:
    """Of the sample, or of the next one that can be read."""
    first, first_reason, total = Fault.NONE, "", len(source)
    for place in range(index, index + min(NEIGHBOURS, total)):
        try:
            return _Made(modality.views(source.encoded(place % total)), first, first_reason)
        except (OSError, DecodeError) as error:
            fault, reason = cause_of(error)
        if not first:
            first, first_reason = fault, reason
    name = source.name(index)
    raise UserError(f"neither {name} ({first_reason}) nor any of the {NEIGHBOURS} samples after it can be read.")
