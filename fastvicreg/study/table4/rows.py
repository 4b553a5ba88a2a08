"""The rows and columns of the paper's Table 4 as settings of the methods. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.methods import MethodConfig
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.presets import preset

Scale = Literal["cpu", "paper"]

COLUMNS = {"none": "none", "var": "+Var", "varcov": "+Var+Cov"}
"""Names of the columns to their headings."""

SPREAD = {"byol": "std_normalized", "simsiam": "std_normalized", "vicreg": "std"}
"""Methods to the figure that tells their collapse: the standard deviation, 1 where healthy, that their loss sees.

A cosine is blind to length; a squared distance is also brought to 0 by embeddings that shrink and still differ in
direction, which unit vectors do not show.
"""


@dataclass(frozen=True)
class Row:
    """One row: a method, what is changed in it, and the paper's linear top-1 by column (None: collapse)."""

    title: str
    method: str
    paper: tuple[float | None, float | None, float | None]
    changed: Mapping[str, Any] = field(default_factory=dict)


NO_NORM = {"batch_norm": False}
BARE = {**NO_NORM, "predictor": False, "predictor_hidden": SimSiamConfig.predictor_hidden}
ROWS = {
    "byol": Row("BYOL: ME SG PR BN", "byol", (69.3, 70.2, 69.5)),
    "simsiam": Row("SimSiam: SG PR BN", "simsiam", (67.9, 68.1, 67.6)),
    "simsiam-no-bn": Row("SimSiam: SG PR", "simsiam", (35.1, 67.3, 67.1), NO_NORM),
    "simsiam-bare": Row("SimSiam: SG", "simsiam", (None, 56.8, 66.1), BARE),
    "vicreg-pr": Row("VICReg: PR", "vicreg", (None, 56.2, 67.3), {"batch_norm": False, "predictor": True}),
    "vicreg-pr-bn": Row("VICReg: PR BN", "vicreg", (None, 57.1, 68.7), {"predictor": True}),
    "vicreg-bn": Row("VICReg: BN", "vicreg", (None, 57.5, 68.6)),
    "vicreg-bare": Row("VICReg: none", "vicreg", (None, 56.5, 67.4), NO_NORM),
}
"""The paper's order (section 6); ME momentum encoder, SG stop-gradient, PR predictor, BN batch norm in the heads."""

CELLS = tuple(f"{row}-{column}" for row in ROWS for column in COLUMNS)


def parted(cell: str) -> tuple[str, str]:
    """The names of a cell's row and column."""
    row, _, column = cell.rpartition("-")
    return row, column


def weights(method: str, column: str) -> dict[str, float]:
    """Weights of the variance and covariance terms: 1 and .01 beside another method, VICReg's own 25 and 1 (C.4)."""
    variance, covariance = (25.0, 1.0) if method == "vicreg" else (1.0, 0.01)
    return {
        "variance": 0.0 if column == "none" else variance,
        "covariance": covariance if column == "varcov" else 0.0,
    }


def cell_config(cell: str, scale: Scale, *, width: int = 16) -> TrainConfig:
    """The settings of one cell, but for data, seed and duration; ``width`` is the cpu scale's."""
    row_name, column = parted(cell)
    row = ROWS[row_name]
    base = _on_cpu(row.method, width) if scale == "cpu" else _as_published(row.method)
    method: Any = base.method
    changed = replace(method, **row.changed, **weights(row.method, column))
    return replace(base, method=changed, run=replace(base.run, eval_every=0))


def _as_published(method: str) -> TrainConfig:
    """ResNet-50, 100 epochs, by the protocol of appendix C.4."""
    if method == "byol":
        return preset("byol-imagenet-100ep").config
    if method == "vicreg":
        return preset("imagenet-100ep").config
    config = preset("simsiam-imagenet-100ep").config
    # The original has batch 512 and no warm-up; Table 4's protocol has these.
    return replace(
        config,
        optim=replace(config.optim, warmup_epochs=10.0),
        run=replace(config.run, batch_size=2048),
    )


def _on_cpu(method: str, width: int) -> TrainConfig:
    """A narrow ResNet-18, narrow heads and one optimizer for all: what learns in a minute of a core."""
    heads: dict[str, MethodConfig] = {
        "byol": BYOLConfig(projector=(512, 128), predictor_hidden=(512,), momentum=0.97),
        "simsiam": SimSiamConfig(projector=(512, 512, 512), predictor_hidden=(128,)),
        "vicreg": VICRegConfig(expander=(512, 512, 512)),
    }
    return TrainConfig(
        data=DataConfig(image_size=32, recipe="small"),
        encoder=ResNetConfig(arch="resnet18", width=width, stem="3x3s2"),
        method=heads[method],
        optim=OptimConfig(optimizer="adamw", base_lr=4e-3, weight_decay=1e-4, warmup_share=0.1),
        run=RunConfig(epochs=1, batch_size=128),
    )
