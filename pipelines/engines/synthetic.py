"""The synthetic engine: one batch of noise, made once on the device; what a run reaches when data costs nothing."""

from __future__ import annotations

from collections.abc import Generator

import torch

from fastvicreg.contracts import Crops
from fastvicreg.pipelines.engines.engine import Delivery
from fastvicreg.pipelines.engines.host import placed
from fastvicreg.pipelines.engines.workload import Epoch, ViewGroup, Workload

SIZE = (500, 375)
"""Width and height in pixels that images are taken to have where it matters: ImageNet's most frequent."""


class SyntheticBackend:
    """Follows the plan's order and labels, so that the rest of a run is as with real data; pixels never change."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._device = work.options.device
        self._labels_N = torch.tensor([work.source.label(i) for i in range(len(work.source))])
        self._crops: tuple[torch.Tensor, ...] = ()

    def close(self) -> None:
        self._crops = ()

    def deliver(self, epoch: Epoch) -> Generator[Delivery, None, None]:
        for batch in epoch.batches:
            slot_B = epoch.slots(batch)
            crops = self._noise(len(slot_B), epoch.groups)
            fault_B = torch.zeros(len(slot_B), dtype=torch.uint8)
            places_BV5 = self._places(epoch.number, slot_B)
            cursor = epoch.cursor(batch)
            yield Crops(crops, slot_B, slot_B.clone(), self._labels_N[slot_B], fault_B, cursor, (), places_BV5), []

    def _places(self, epoch: int, slot_B: torch.Tensor) -> torch.Tensor | None:
        """The plan's, as if every image had ``SIZE``; None where nobody asked for them."""
        if not self._work.options.places:
            return None
        return placed(*self._work.plan.boxes(epoch, slot_B, torch.tensor([SIZE]).repeat(len(slot_B), 1)))

    def _noise(self, count: int, groups: tuple[ViewGroup, ...]) -> tuple[torch.Tensor, ...]:
        shapes = [(group.count, group.side, group.side, 3) for group in groups]
        fits = [crops.shape[1:] for crops in self._crops] == shapes and len(self._crops[0]) >= count
        if not fits:
            generator = torch.Generator().manual_seed(0)
            made = [torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator) for shape in shapes]
            self._crops = tuple(crops.to(self._device) for crops in made)
        return tuple(crops[:count] for crops in self._crops)
