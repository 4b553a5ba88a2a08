"""The synthetic engine: one batch of noise, made once on the device; what a run reaches when data costs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from fastvicreg.contracts import Crops, Cursor, Plan, Source
from fastvicreg.pipelines.engines.batching import Batching
from fastvicreg.pipelines.engines.options import EngineOptions


class SyntheticEngine:
    """Follows the plan's order and labels, so that the rest of a run is as with real data; pixels never change."""

    def __init__(self, source: Source, plan: Plan, batching: Batching, options: EngineOptions) -> None:
        self._plan = plan
        self._batching = batching
        self._device = options.device
        self._labels_N = torch.tensor([source.label(i) for i in range(len(source))])
        self._crops: torch.Tensor | None = None

    def batches_per_epoch(self, epoch: int) -> int:
        return self._batching.batches_per_epoch

    def faults(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        self._crops = None

    def batches(self, start: Cursor) -> Iterator[Crops]:
        order = self._plan.order(start.epoch)
        for batch in range(start.batch, self.batches_per_epoch(start.epoch)):
            slot_B = self._batching.slots(order, batch)
            crops = self._noise(len(slot_B), self._plan.size(start.epoch))
            fault_B = torch.zeros(len(slot_B), dtype=torch.uint8)
            yield Crops(crops, slot_B, slot_B.clone(), self._labels_N[slot_B], fault_B, Cursor(start.epoch, batch))

    def _noise(self, count: int, side: int) -> torch.Tensor:
        shape = (count, self._plan.views, side, side, 3)
        if self._crops is None or self._crops.shape[1:] != shape[1:] or len(self._crops) < count:
            generator = torch.Generator().manual_seed(0)
            self._crops = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self._device)
        return self._crops[:count]
