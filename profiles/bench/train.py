"""A short run of the demo's preset by every pipeline, end to end: trained, stopped and resumed, evaluated."""

from __future__ import annotations

import io
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastvicreg.config import TrainConfig
from fastvicreg.doctor import pipeline_finding
from fastvicreg.errors import UserError
from fastvicreg.pipelines.engines import ENGINES
from fastvicreg.presets import preset
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import read
from fastvicreg.train.assemble import Run, assemble
from fastvicreg.train.trainer import Trainer

COLUMNS = (
    *("pipeline", "device", "precision", "steps", "seconds", "images_per_s", "knn"),
    *("goes_on", "resumed", "verdict"),
)

BATCH = 128
GOES_ON = 0.02
"""Of the loss at the first step after a stop, on a GPU; a run's first loss is 6 % off its 18th, 8 % off its 34th."""
ORDER = ("native", *sorted(set(ENGINES) - {"native"}))
"""What needs nothing but this package first."""


def run(device: str = "cpu", *, epochs: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """One row a pipeline: ``images_per_s`` of the whole run, evaluations and checkpoints included; ``knn`` in %.

    A second run is stopped in the middle of an epoch and continued. ``goes_on`` is the relative difference of the two
    runs' loss at the step after the stop, ``resumed`` the largest difference, relative to the largest value, of any
    tensor at the end: 0 where both are the same to the bit, as on a CPU they must be. A GPU's sums need not have one
    order; there the first must be below ``GOES_ON``, and the second finite. ``verdict``: "pass", "FAIL" and why (also
    an error, or a loss that is not finite), or why the pipeline does not run here.
    """
    return list(rows(device, epochs=epochs, seed=seed))


def rows(device: str = "cpu", *, epochs: int = 2, seed: int = 0, repeats: int = 1) -> Iterator[dict[str, Any]]:
    """The rows of ``run``, each as soon as it is known; a check is not repeated."""
    for pipeline in ORDER:
        yield _row(pipeline, device, epochs, seed)


def failures(rows: Sequence[dict[str, Any]]) -> int:
    """Rows that failed."""
    return sum(row["verdict"].startswith("FAIL") for row in rows)


def _row(pipeline: str, device: str, epochs: int, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"pipeline": pipeline, "device": device, "epochs": epochs}
    found = pipeline_finding(pipeline)
    if not found.works:
        return row | {"verdict": f"{found.seen}; {found.remedy}"}
    config = preset("demo").config
    config = replace(
        config,
        data=replace(config.data, pipeline=pipeline),
        run=replace(config.run, epochs=epochs, device=device, seed=seed, batch_size=BATCH, eval_every=epochs),
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            return row | _trained(config, Path(folder))
    except UserError as error:
        return row | {"verdict": f"FAIL: {error}"}
    except Exception as error:  # a compiler's or a driver's, of any class
        return row | {"verdict": f"FAIL: {type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def _trained(config: TrainConfig, folder: Path) -> dict[str, Any]:
    parts, trainer = _trainer(config, folder / "whole")
    began = time.perf_counter()
    outcome = trainer.train()
    seconds = time.perf_counter() - began
    stop = outcome.step // 2 + 1
    half = replace(config, run=replace(config.run, steps=stop))
    _trainer(half, folder / "stopped")[1].train()
    continued, trainer = _trainer(config, folder / "stopped", resume=True)
    trainer.train()
    figures = {
        "precision": parts.precision,
        "steps": outcome.step,
        "seconds": seconds,
        "images_per_s": outcome.step * config.run.batch_size / seconds,
        "loss": outcome.last["total"],
        "knn": outcome.evaluation.get("knn"),
        "goes_on": _loss_apart(folder / "whole", folder / "stopped", stop + 1),
        "resumed": _apart(parts.module.state_dict(), continued.module.state_dict()),
    }
    return figures | {"verdict": verdict(figures, config.run.device)}


def verdict(figures: Mapping[str, Any], device: str) -> str:
    """ "pass", or "FAIL" and why."""
    if not math.isfinite(figures["loss"]):
        return f"FAIL: the loss is {figures['loss']}"
    if not figures["goes_on"] <= (0.0 if device == "cpu" else GOES_ON):  # NaN passes no gate
        return f"FAIL: the resumed run goes on elsewhere: its next loss is off by {figures['goes_on']:.1e}"
    if not figures["resumed"] <= (0.0 if device == "cpu" else sys.float_info.max):
        return f"FAIL: the resumed run ends elsewhere, by {figures['resumed']:.1e}"
    return "pass"


def _loss_apart(one: Path, other: Path, step: int) -> float:
    """The relative difference of two runs' loss at a step."""
    a, b = (next(row["total"] for row in read(run) if row["step"] == step and "total" in row) for run in (one, other))
    return abs(a - b) / abs(a)


def _trainer(config: TrainConfig, folder: Path, *, resume: bool = False) -> tuple[Run, Trainer]:
    parts = assemble(config)
    return parts, Trainer(config, folder, resume=resume, display=Display(Console(file=io.StringIO())), run=parts)


def _apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two states' tensors, each relative to its largest value."""
    worst = 0.0
    for name, tensor in one.items():
        difference = (tensor.double() - other[name].double()).abs().max().item()
        if math.isnan(difference):  # which ``max`` would pass over
            return math.inf
        worst = max(worst, difference / max(tensor.double().abs().max().item(), 1e-12)) if difference else worst
    return worst


@dataclass(frozen=True)
class BenchOptions(DeviceOptions):
    """A short run by every pipeline, end to end."""

    epochs: int = 2
    """Of the demo's data."""


BENCHMARK = Benchmark(
    rows,
    COLUMNS,
    key=("pipeline", "device"),
    options=BenchOptions,
    figure="images_per_s",
    better="higher",
    title="one run each, with a stop and a continuation",
    failures=failures,
)
