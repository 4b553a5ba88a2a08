"""One trace's summary: steps, stages, the devices' time, idle's causes, tables and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.communication import Communication, find_communication
from fastvicreg.profiles.trace.device import PARTS, Device, counted, find_devices
from fastvicreg.profiles.trace.events import Trace
from fastvicreg.profiles.trace.evidence import device_evidence, host_evidence
from fastvicreg.profiles.trace.gaps import CAUSES, Gaps, find_gaps
from fastvicreg.profiles.trace.host import Host, ThreadRow, find_host, thread_table
from fastvicreg.profiles.trace.join import Launches, find_launches
from fastvicreg.profiles.trace.memory import Use, memory_use
from fastvicreg.profiles.trace.missing import in_use, missing, unrecorded_launches
from fastvicreg.profiles.trace.stages import Stages, find_stages
from fastvicreg.profiles.trace.steps import Steps, find_steps, repeated_marks
from fastvicreg.profiles.trace.tables import (
    KernelRow,
    OperatorRow,
    WorkerRow,
    kernel_table,
    operator_table,
    worker_table,
)
from fastvicreg.profiles.trace.verdict import Verdict, judge_device, judge_host, not_recorded


@dataclass(frozen=True)
class Summary:
    """All that ``trace summary`` tells; the parsed trace with its segments stays at hand for a timeline.

    ``stage_shares`` are of the typical steps' time; ``stage_device_ms`` is the devices' time a step on what the stage
    launched. ``device`` is the busiest one, ``gaps`` its idle time; ``device_shares`` and ``idle_by`` are means over
    the devices that work. They are None for a trace in which nothing ran on a device, which has a ``host`` instead.
    """

    trace: Trace
    steps: Steps
    launches: Launches
    stages: Stages
    devices: tuple[Device, ...]
    gaps: Gaps | None
    host: Host | None
    stage_shares: dict[str, float]
    stage_device_ms: dict[str, float]
    device_shares: dict[str, float] | None
    idle_by: dict[str, float] | None
    communication: Communication | None
    kernels: list[KernelRow]
    operators: list[OperatorRow]
    workers: list[WorkerRow]
    threads: list[ThreadRow]
    memory: dict[str, Use]
    missing: list[str]
    comm: str | None
    verdict: Verdict

    @property
    def device(self) -> Device | None:
        """The busiest device."""
        return self.devices[0] if self.devices else None

    @property
    def step_marks(self) -> list[str]:
        """Annotations that could mark steps, where none does."""
        return repeated_marks(self.trace) if self.steps.source == "trace" else []

    @property
    def step_ms(self) -> dict[str, float]:
        """Median and 95th percentile of the typical steps' milliseconds on the host."""
        return _percentiles(self.steps.ms)

    @property
    def device_step_ms(self) -> dict[str, float] | None:
        """The same until the devices have done what the steps launched; None without a device."""
        return _percentiles(self.steps.device_ms) if self.devices else None

    def row(self) -> dict[str, Any]:
        """The figures for ``--json``."""
        return {
            "file": str(self.trace.path),
            "rank": self.trace.rank,
            "device_name": self.trace.device_name,
            "steps": len(self.steps.names),
            "steps_by": self.steps.source,
            "steps_apart": [step._asdict() for step in self.steps.apart],
            "step_ms": self.step_ms,
            "device_step_ms": self.device_step_ms,
            "stages": self.stage_shares,
            "stages_derived": sorted(self.stages.derived),
            "stage_device_ms": self.stage_device_ms,
            "device": self.device_shares,
            "devices": {
                str(one.number): _shares(PARTS, one.part_us_WP, self.steps.windows.total) for one in self.devices
            },
            "idle_by": self.idle_by,
            "host": self.host.shares if self.host else None,
            "communication": _communication(self),
            "memory_peak_bytes": {where: use.peak for where, use in self.memory.items()},
            "kernels": [row._asdict() for row in self.kernels[:20]],
            "operators": [row._asdict() for row in self.operators[:20]],
            "workers": [row._asdict() for row in self.workers],
            "threads": [row._asdict() for row in self.threads],
            "dropped_events": self.trace.dropped,
            "faults": list(self.trace.faults),
            "foreign_categories": self.trace.foreign,
            "missing": self.missing,
            "verdict": self.verdict._asdict(),
        }


def summarize(trace: Trace, *, steps_by: str | None = None, comm: str | None = None) -> Summary:
    """Everything from one parsed trace.

    ``steps_by`` names the annotation that marks steps, ``comm`` is a pattern of further kernels that communicate.
    ``UserError`` where no annotation has the name, or the pattern is none.
    """
    launches = find_launches(trace)
    steps = find_steps(trace, launches, steps_by)
    stages = find_stages(trace, steps)
    devices = find_devices(trace, steps, comm)
    stage_shares = _shares(stages.names, stages.per_step(steps), steps.windows.total)
    kernels = kernel_table(trace, steps, devices, launches) if devices else []
    operators = operator_table(trace, steps, launches)
    gaps, host, device_shares, idle_by, communication = None, None, None, None, None
    unrecorded, call = unrecorded_launches(trace)
    if devices:
        working = counted(devices)
        every = [find_gaps(trace, steps, device, launches) for device in working]
        gaps, total = every[0], steps.windows.total * len(working)
        device_shares = _shares(PARTS, sum(device.part_us_WP for device in working), total)
        idle_by = _shares(CAUSES, sum(one.cause_us_WC for one in every), total)
        communication = find_communication(trace, steps, devices[0], comm)
        evidence = device_evidence(trace, steps, kernels, gaps, idle_by, comm)
        verdict = judge_device(device_shares, idle_by, evidence, in_use(trace))
    else:
        host = find_host(trace, steps)
        verdict = judge_host(host.shares, host_evidence(operators, stage_shares, host, steps), in_use(trace))
        verdict = not_recorded(unrecorded, call) if unrecorded else verdict
    return Summary(
        trace=trace,
        steps=steps,
        launches=launches,
        stages=stages,
        devices=devices,
        gaps=gaps,
        host=host,
        stage_shares=stage_shares,
        stage_device_ms=_stage_device_ms(trace, steps, stages, launches),
        device_shares=device_shares,
        idle_by=idle_by,
        communication=communication,
        kernels=kernels,
        operators=operators,
        workers=worker_table(trace, steps),
        threads=[] if devices else thread_table(trace, steps),
        memory=memory_use(trace),
        missing=missing(trace, steps, launches),
        comm=comm,
        verdict=verdict,
    )


def _percentiles(ms_W: NDArray[np.float64]) -> dict[str, float]:
    return {"p50": float(np.median(ms_W)), "p95": float(np.percentile(ms_W, 95))}


def _shares(names: tuple[str, ...], us_WK: Any, total: float) -> dict[str, float]:
    return {name: float(us / total) for name, us in zip(names, us_WK.sum(0), strict=True)}


def _stage_device_ms(trace: Trace, steps: Steps, stages: Stages, launches: Launches) -> dict[str, float]:
    """By the stage that the step's thread was in when the work was launched, on whichever thread."""
    tied = launches.call_D >= 0
    if not tied.any():
        return {}
    stage = stages.segments.at(trace.start_N[launches.call_D[tied]])
    length = (trace.end_N - trace.start_N)[launches.work_D[tied]]
    ms = np.bincount(stage[stage >= 0], length[stage >= 0], len(stages.names)) / 1e3 / len(steps.names)
    return {name: float(value) for name, value in zip(stages.names, ms, strict=True)}


def _communication(summary: Summary) -> dict[str, Any] | None:
    if (found := summary.communication) is None:
        return None
    total = summary.steps.windows.total
    return {
        "exposed": found.exposed_us / total,
        "hidden": found.hidden_us / total,
        "overlap": found.overlap,
        "collectives": [row._asdict() for row in found.collectives],
    }
