"""Features that need no training: pixels, and the network before its first step."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastvicreg.config import TrainConfig
from fastvicreg.datasets import Datasets
from fastvicreg.study import runs


def pixels(config: TrainConfig, data: Datasets) -> dict[str, Any]:
    """``runs.classify`` by the normalised pixels of evaluation's view."""
    return runs.classify(*runs.features(nn.Flatten(), config, data))


def untrained(config: TrainConfig, data: Datasets) -> dict[str, Any]:
    """``runs.measure`` of the weights that the run of ``config`` starts with."""
    return runs.measure(runs.fresh(config), config, data)
