"""What the study compares: features that need no training, and methods by their settings. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastvicreg.config import TrainConfig
from fastvicreg.methods.barlow_twins.config import BarlowTwinsConfig
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.simclr.config import SimCLRConfig
from fastvicreg.presets import of_views, preset

Scale = Literal["cpu", "full"]

BASELINES = {"pixels": "raw pixels", "random": "random network"}
"""Rows without training to their titles."""


@dataclass(frozen=True)
class Row:
    """A method of the study."""

    title: str
    on_cpu: Callable[[], Any]
    """Its settings beside the preset cifar10-cpu's encoder, data and optimizer."""
    preset: str
    """Whose settings it has at full scale."""
    changed: Mapping[str, Any]
    """Of the method, at both scales."""
    published: Mapping[int, float]
    """Linear top-1 by epochs, of a full ResNet-18 (README of tsb0601/EMP-SSL)."""
    views: int = 2
    """Of each image: more of fewer images, so that a step has as many views as the others."""


def _vicreg() -> Any:
    return preset("cifar10-cpu").config.method


ROWS = {
    "vicreg": Row("VICReg", _vicreg, "cifar10", {}, {1: 40.6, 10: 69.7, 30: 78.1, 1000: 92.1}),
    "vicreg-4views": Row("VICReg, four views", _vicreg, "cifar10", {}, {}, views=4),
    "vicreg-no-variance": Row("VICReg without variance", _vicreg, "cifar10", {"variance": 0.0}, {}),
    "barlow-twins": Row(
        "Barlow Twins",
        lambda: BarlowTwinsConfig(projector=(512, 512, 512), loss_scale=0.1, lr_scale_1d=1.0),
        "solo-cifar10-barlow-twins",
        {},
        {},
    ),
    "byol": Row(
        "BYOL",
        lambda: BYOLConfig(projector=(512, 128), predictor_hidden=(512,), momentum=0.97),
        "solo-cifar10-byol",
        {},
        {1: 24.9, 10: 48.9, 30: 68.4, 1000: 92.6},
    ),
    "simclr": Row(
        "SimCLR",
        lambda: SimCLRConfig(projector=(512, 128), temperature=0.5),
        "solo-cifar10-simclr",
        {},
        {1: 28.2, 10: 56.5, 30: 66.3, 1000: 91.0},
    ),
}


def row_config(name: str, scale: Scale) -> TrainConfig:
    """The settings of one row, but for data, seed and duration."""
    row = ROWS[name]
    method: Any
    if scale == "cpu":
        config = preset("cifar10-cpu").config
        method = row.on_cpu()
    else:
        config = preset(row.preset).config
        # The presets' 10 epochs never end in a short run.
        config = replace(config, optim=replace(config.optim, warmup_share=0.1))
        method = config.method
    config = replace(config, method=replace(method, **row.changed), run=replace(config.run, eval_every=0))
    return config if row.views == 2 else of_views(config, row.views)
