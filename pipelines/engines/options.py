"""Options of an engine beside its data: what every engine is built with, and takes as far as it knows them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.stalls import LIMIT

Decoder = Literal["auto", "cpu", "mixed"]


@dataclass(frozen=True)
class EngineOptions:
    """How fast and where an engine decodes; none changes which crops it gives."""

    workers: int = 0  # decoding threads; 0: one a core
    prefetch: int = 3  # batches decoded ahead
    device: str = "cpu"  # of the training step, for which crops are pinned or made
    budget: FaultBudget | None = None
    resample: str = "auto"
    decoder: Decoder = "auto"  # dali's
    hw_decoder_load: float = 0.65  # dali's
    stall: float = LIMIT  # seconds without a result after which a thread is given up
    places: bool = False  # tell where each view was cut

    @property
    def threads(self) -> int:
        """``workers``, or one a core."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def pin(self) -> bool:
        """Whether crops are copied to a CUDA device, which page-locked memory makes faster."""
        return self.device.startswith("cuda")
