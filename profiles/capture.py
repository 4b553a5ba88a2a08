"""Capture: a few steps of a loop under torch.profiler, written beside what the same steps take without it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.profiles.measure import Instant, Timing, milliseconds, now, summarize, synchronize
from fastvicreg.profiles.parts import PARTS, Loop, opened, whole
from fastvicreg.provenance import document, write_json
from fastvicreg.registry import unknown
from fastvicreg.train.assemble import Run

TRACE, SIDECAR = ".pt.trace.json.gz", ".capture.json"
"""Endings of the two files; TensorBoard's plugin takes the first by its name."""

LEAST_TIMED = 10


@dataclass(frozen=True)
class Settings:
    """What is captured, and how closely. Every count is of steps."""

    wait: int = 5  # before anything is measured
    warmup: int = 2  # with the profiler on, but not kept
    active: int = 5  # kept
    stacks: bool = False
    memory: bool = False  # allocations, in place of the engines' threads


@dataclass(frozen=True)
class Captured:
    """The trace, and the steps' milliseconds without and with the profiler."""

    trace: Path
    sidecar: Path
    plain: Timing
    profiled: Timing

    @property
    def overhead(self) -> float:
        """How much longer a step takes under the profiler, as a share of itself."""
        return self.profiled.ms / self.plain.ms - 1

    @property
    def overhead_said(self) -> str:
        """The overhead as a person reads it: a profiler makes no step shorter."""
        return f"{self.overhead:+.0%}" if self.overhead > 0 else "below the noise"


def capture(
    config: TrainConfig, folder: Path, *, part: str | None = None, settings: Settings | None = None
) -> Captured:
    """Profile the run that ``config`` describes, or one of its ``PARTS`` alone; the trace goes into ``folder``.

    First come ``wait`` steps, then as many as ``active`` (at least 10) timed without the profiler, in the same
    process, then the captured ones. Several processes write a trace each.

    Raises ``UserError`` for an unknown part, for what ``assemble`` refuses, and where nothing can be written.
    """
    settings = settings or Settings()
    if part is not None and part not in PARTS:
        raise UserError(unknown("part", part, tuple(PARTS)))
    with opened(config) as run, _writable(folder) as draft:
        loop = PARTS[part](config, run) if part else whole(config, run)
        name = f"{part or 'run'}{_rank(run)}.{time.time_ns()}"
        try:
            plain, profiled = _record(loop, run.device, settings, draft / ("trace" + TRACE))
        finally:
            loop.close()
        trace = (draft / ("trace" + TRACE)).rename(folder / (name + TRACE))
        captured = Captured(trace, folder / (name + SIDECAR), summarize(plain), summarize(profiled))
        row = _row(captured, part, config.run.batch_size)
        about = {
            "trace": trace.name,
            "device": run.device,
            "precision": run.precision,
            "processes": run.processes.world_size,
            "settings": asdict(settings),
            "step_ms": plain,
            "profiled_ms": profiled,
            "config": asdict(config),
        }
        write_json(captured.sidecar, document("profile", [row], len(plain)) | about)
    return captured


def _record(loop: Loop, device: str, settings: Settings, path: Path) -> tuple[list[float], list[float]]:
    """(milliseconds of each un-profiled step, of each captured one); the trace is written to ``path``."""
    for _ in range(settings.wait):
        next(loop)
    plain = [_timed(loop, device) for _ in range(max(LEAST_TIMED, settings.active))]
    with _without_probes(), _profiler(device, settings) as profiler:
        steps = []
        for _ in range(settings.warmup + settings.active):
            steps.append(_timed(loop, device))
            profiler.step()
    profiler.export_chrome_trace(str(path))
    synchronize(device)
    return [milliseconds(*step) for step in plain], [milliseconds(*step) for step in steps[settings.warmup :]]


@contextmanager
def _without_probes() -> Iterator[None]:
    """Keep the lines of libkineto's probes ("USDT:...") from the terminal; no setting does. All others come after."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not line.startswith(b"USDT:"):
                    os.write(2, line)


def _timed(loop: Loop, device: str) -> tuple[Instant, Instant]:
    began = now(device)
    next(loop)
    return began, now(device)


def _profiler(device: str, settings: Settings) -> profile:
    activities = [ProfilerActivity.CPU]
    if device.startswith("cuda"):
        if ProfilerActivity.CUDA not in supported_activities():
            raise UserError(f"torch {torch.__version__} is built without CUPTI: it cannot profile --device {device}.")
        activities.append(ProfilerActivity.CUDA)
    return profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=settings.warmup, active=settings.active, repeat=1),
        record_shapes=True,
        with_stack=settings.stacks,
        profile_memory=settings.memory,
        experimental_config=_ExperimentalConfig(
            # The engines' threads started before the profiler. torch 2.13 then records no allocation.
            profile_all_threads=not settings.memory,
            verbose=settings.stacks,
        ),
    )


def _row(captured: Captured, part: str | None, batch: int) -> dict[str, Any]:
    return {
        "part": part or "run",
        "step_ms": captured.plain.ms,
        "spread": captured.plain.spread,
        "images_per_s": batch / captured.plain.ms * 1e3,
        "profiled_ms": captured.profiled.ms,
        "overhead": captured.overhead,
        "trace_bytes": captured.trace.stat().st_size,
    }


def _rank(run: Run) -> str:
    return f".rank{run.processes.rank}" if run.processes.world_size > 1 else ""


@contextmanager
def _writable(folder: Path) -> Iterator[Path]:
    """A place inside ``folder`` for what is not whole yet; ``UserError`` where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = tempfile.TemporaryDirectory(dir=folder, prefix=".capture-")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}.") from error
    with draft as path:
        yield Path(path)
