"""The synthetic engine: one batch of noise, made once on the device; what a run reaches when data costs nothing."""

from __future__ import annotations

from collections.abc import Generator

import torch

from fastvicreg.contracts import Crops
from fastvicreg.pipelines.engines.engine import Delivery
from fastvicreg.pipelines.engines.workload import Epoch, Workload


class SyntheticBackend:
    """Follows the plan's order and labels, so that the rest of a run is as with real data; pixels never change."""

    def __init__(self, work: Workload) -> None:
        self._views = work.plan.views
        self._device = work.options.device
        self._labels_N = torch.tensor([work.source.label(i) for i in range(len(work.source))])
        self._crops: torch.Tensor | None = None

    def close(self) -> None:
        self._crops = None

    def deliver(self, epoch: Epoch) -> Generator[Delivery, None, None]:
        for batch in epoch.batches:
            slot_B = epoch.slots(batch)
            crops = self._noise(len(slot_B), epoch.side)
            fault_B = torch.zeros(len(slot_B), dtype=torch.uint8)
            yield Crops(crops, slot_B, slot_B.clone(), self._labels_N[slot_B], fault_B, epoch.cursor(batch)), []

    def _noise(self, count: int, side: int) -> torch.Tensor:
        shape = (count, self._views, side, side, 3)
        if self._crops is None or self._crops.shape[1:] != shape[1:] or len(self._crops) < count:
            generator = torch.Generator().manual_seed(0)
            self._crops = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self._device)
        return self._crops[:count]
