"""What every engine works through alike: this rank's batches of an epoch, and empty batches to write crops into."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvicreg.contracts import Crops, Cursor, Plan, ReadAhead, Source
from fastvicreg.pipelines.engines.batching import Batching
from fastvicreg.pipelines.engines.memory import PixelMemory
from fastvicreg.pipelines.engines.options import EngineOptions


@dataclass(frozen=True)
class ViewGroup:
    """Consecutive views of one size."""

    views: slice
    side: int

    @property
    def count(self) -> int:
        """How many views."""
        return self.views.stop - self.views.start


def groups_of(sizes: Sequence[int]) -> tuple[ViewGroup, ...]:
    """Views of these sizes, those together that follow one another with the same one."""
    groups, first = [], 0
    for side, views in itertools.groupby(sizes):
        stop = first + len(list(views))
        groups.append(ViewGroup(slice(first, stop), side))
        first = stop
    return tuple(groups)


@dataclass(frozen=True)
class Epoch:
    """One epoch from a batch to its end."""

    number: int
    batches: range
    groups: tuple[ViewGroup, ...]
    order_N: Tensor
    batching: Batching

    def cursor(self, batch: int) -> Cursor:
        """Where that batch lies."""
        return Cursor(self.number, batch)

    def slots(self, batch: int) -> Tensor:
        """slot_B: this rank's part of that batch; empty past the epoch's end."""
        return self.batching.slots(self.order_N, batch)


class Workload:
    """The samples of a run as an engine gets them: which ones form a batch, and where their crops are written."""

    def __init__(self, source: Source, plan: Plan, batching: Batching, options: EngineOptions) -> None:
        self.source = source
        self.plan = plan
        self.batching = batching
        self.options = options
        self._memory = PixelMemory(pin=options.pin)

    def epoch(self, start: Cursor) -> Epoch:
        """The epoch of ``start``, from there on."""
        batches = range(start.batch, self.batching.batches_per_epoch)
        groups = groups_of(self.plan.sizes(start.epoch))
        return Epoch(start.epoch, batches, groups, self.plan.order(start.epoch), self.batching)

    def empty(self, cursor: Cursor, slot_B: Tensor, *, gpu: int | None = None) -> Crops:
        """The batch of ``slot_B`` as if none had to be replaced; its pixels are of any content, to be written in full.

        They lie on that GPU, or on the host in memory that is used again once nobody holds it.
        """
        groups = groups_of(self.plan.sizes(cursor.epoch))
        shapes = [(len(slot_B), group.count, group.side, group.side, 3) for group in groups]
        if gpu is None:
            pixels = self._memory.take_all(shapes)
        else:
            pixels = tuple(torch.empty(shape, dtype=torch.uint8, device=f"cuda:{gpu}") for shape in shapes)
        label_B = torch.tensor([self.source.label(slot) for slot in slot_B.tolist()], dtype=torch.int64)
        fault_B = torch.zeros(len(slot_B), dtype=torch.uint8)
        return Crops(pixels, slot_B, slot_B.clone(), label_B, fault_B, cursor, places_BV5=self.no_places(len(slot_B)))

    def no_places(self, samples: int) -> Tensor | None:
        """Memory for ``Crops.places_BV5``, to be written; None where nobody asked for it."""
        if not self.options.places:
            return None
        return torch.empty(samples, self.plan.views, 5, pin_memory=self.options.pin)

    def read_ahead(self, slot_B: Tensor) -> None:
        """Tell the source, where it can use it, that these samples are read soon."""
        if isinstance(self.source, ReadAhead):
            self.source.read_ahead(slot_B)
