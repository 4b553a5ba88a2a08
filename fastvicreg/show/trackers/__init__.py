"""Programs that a run's metrics go to beside its own log, by name. Importing this imports none of them.

TensorBoard always gets them; ``--log`` names others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fastvicreg.errors import UserError
from fastvicreg.registry import resolve_class, unknown

TRACKERS = {
    "tensorboard": "fastvicreg.show.trackers.tensorboard:TensorBoard",
    "wandb": "fastvicreg.show.trackers.wandb:WeightsAndBiases",
    "mlflow": "fastvicreg.show.trackers.mlflow:MLflow",
}
"""Names to the class of a ``Tracker``."""

LOCAL = "tensorboard"
"""The one that writes into the run's folder, and fails only where the run's own log does."""


class Point(NamedTuple):
    """One row of a run's log: "train" or "eval", the step, and the values by name, without epoch and step."""

    group: str
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Opened:
    """What a tracker is opened with."""

    folder: Path
    """The run's."""
    resumed_at: int = 0
    """Step that the run goes on after; later points of before are made again."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's, section by section."""


class Tracker(Protocol):
    """Built from an ``Opened``. It may raise anything: ``guarded`` keeps that from the run."""

    note: str
    """A line to show once it is open, such as where its own are; ""."""

    def log(self, points: Sequence[Point]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def names_of(asked: Sequence[str]) -> tuple[str, ...]:
    """``--log``'s names, parted at commas too, without TensorBoard, which is always there.

    ``UserError`` with the nearest name for one that there is not.
    """
    names = [name.strip() for part in asked for name in part.split(",") if name.strip()]
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--log: {unknown('tracker', name, TRACKERS)}")
    return tuple(dict.fromkeys(name for name in names if name != LOCAL))


def tracker_class(name: str) -> type[Any]:
    """The class of ``name``. ``UserError`` where its program is not installed, with the command that adds it."""
    try:
        return resolve_class("tracker", name, TRACKERS)
    except ImportError as error:
        raise UserError(f"--log {name} needs {error.name or name}: pip install 'fastvicreg[{name}]'.") from None
