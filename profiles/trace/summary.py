"""One trace's summary: steps, stages, the device's time, idle's causes, tables and the verdict."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.device import COMMUNICATION, PARTS, Device, find_device
from fastvicreg.profiles.trace.events import ON_DEVICE, Kind, Trace
from fastvicreg.profiles.trace.gaps import CAUSES, Gaps, find_gaps
from fastvicreg.profiles.trace.intervals import divide, per_window, union
from fastvicreg.profiles.trace.stages import DATA, Stages, find_stages
from fastvicreg.profiles.trace.steps import Steps, find_steps
from fastvicreg.profiles.trace.tables import (
    KernelRow,
    OperatorRow,
    WorkerRow,
    kernel_table,
    memory_peaks,
    operator_table,
    worker_table,
)
from fastvicreg.profiles.trace.verdict import Verdict, judge_device, judge_host

_HOST_COMM = re.compile(r"^(gloo|nccl|mpi|ucc):|^fv\.comm$")
_OWN_COMM = re.compile(r"^fv\.comm$")


@dataclass(frozen=True)
class Summary:
    """All that ``trace summary`` tells; the parsed trace with its segments stays at hand for a timeline.

    ``stage_shares`` are of the steps' time; ``stage_device_ms`` is the device's time a step on what the stage
    launched. ``device``, ``gaps`` and their shares are None for a trace in which nothing ran on a device.
    """

    trace: Trace
    steps: Steps
    stages: Stages
    device: Device | None
    gaps: Gaps | None
    stage_shares: dict[str, float]
    stage_device_ms: dict[str, float]
    device_shares: dict[str, float] | None
    idle_by: dict[str, float] | None
    kernels: list[KernelRow]
    operators: list[OperatorRow]
    workers: list[WorkerRow]
    memory: dict[str, int]
    verdict: Verdict

    @property
    def step_ms(self) -> dict[str, float]:
        """Median and 95th percentile of the steps' milliseconds."""
        return {"p50": float(np.median(self.steps.ms)), "p95": float(np.percentile(self.steps.ms, 95))}

    def row(self) -> dict[str, Any]:
        """The figures for ``--json``."""
        return {
            "file": str(self.trace.path),
            "rank": self.trace.rank,
            "device_name": self.trace.device_name,
            "steps": len(self.steps.names),
            "steps_by": self.steps.source,
            "step_ms": self.step_ms,
            "stages": self.stage_shares,
            "stages_derived": sorted(self.stages.derived),
            "stage_device_ms": self.stage_device_ms,
            "device": self.device_shares,
            "idle_by": self.idle_by,
            "memory_peak_bytes": self.memory,
            "kernels": [row._asdict() for row in self.kernels[:20]],
            "operators": [row._asdict() for row in self.operators[:20]],
            "workers": [row._asdict() for row in self.workers],
            "dropped_events": self.trace.dropped,
            "verdict": self.verdict._asdict(),
        }


def summarize(trace: Trace) -> Summary:
    """Everything from one parsed trace."""
    steps = find_steps(trace)
    stages = find_stages(trace, steps)
    device = find_device(trace, steps)
    total = steps.windows.total
    stage_shares = _shares(stages.names, stages.per_step(steps), total)
    kernels = kernel_table(trace, steps, device) if device else []
    operators = operator_table(trace, steps)
    gaps, device_shares, idle_by = None, None, None
    if device:
        gaps = find_gaps(trace, steps, device)
        device_shares = _shares(PARTS, device.part_us_WP, total)
        idle_by = _shares(CAUSES, gaps.cause_us_WC, total)
        verdict = judge_device(device_shares, idle_by, _evidence(kernels, operators, gaps))
    else:
        data = sum(share for name, share in stage_shares.items() if DATA.search(name))
        verdict = judge_host(stage_shares, data, _host_comm(trace, steps), _evidence(kernels, operators, None))
    return Summary(
        trace=trace,
        steps=steps,
        stages=stages,
        device=device,
        gaps=gaps,
        stage_shares=stage_shares,
        stage_device_ms=_stage_device_ms(trace, steps, stages),
        device_shares=device_shares,
        idle_by=idle_by,
        kernels=kernels,
        operators=operators,
        workers=worker_table(trace, steps),
        memory=memory_peaks(trace),
        verdict=verdict,
    )


def _shares(names: tuple[str, ...], us_WK: NDArray[np.float64], total: float) -> dict[str, float]:
    return {name: float(us / total) for name, us in zip(names, us_WK.sum(0), strict=True)}


def _stage_device_ms(trace: Trace, steps: Steps, stages: Stages) -> dict[str, float]:
    """By the stage that the step's thread was in when the work was launched, on whichever thread."""
    work, calls = trace.where(*ON_DEVICE), trace.where(Kind.RUNTIME)
    calls = calls[trace.correlation_N[calls] >= 0]
    number, first = np.unique(trace.correlation_N[calls], return_index=True)
    if not len(work) or not len(number):
        return {}
    place = np.minimum(np.searchsorted(number, trace.correlation_N[work]), len(number) - 1)
    known = number[place] == trace.correlation_N[work]
    stage = stages.segments.at(trace.start_N[calls][first[place[known]]])
    length = (trace.end_N[work] - trace.start_N[work])[known]
    ms = np.bincount(stage[stage >= 0], length[stage >= 0], len(stages.names)) / 1e3 / len(steps.names)
    return {name: float(value) for name, value in zip(stages.names, ms, strict=True)}


def _host_comm(trace: Trace, steps: Steps) -> float:
    """Share of the steps that the host waits in communication.

    Where its own thread is in our annotation of a collective, or where some thread communicates while it runs no
    operator.
    """
    marks = trace.where(Kind.ANNOTATION)
    comm = marks[trace.named(marks, _HOST_COMM)]
    own = comm[(trace.lane_N[comm] == steps.lane) & trace.named(comm, _OWN_COMM)]
    ops = trace.where(Kind.OP)
    ops = ops[trace.lane_N[ops] == steps.lane]
    layers = [union(trace.start_N[i], trace.end_N[i]) for i in (own, ops, comm)]
    us_W4 = per_window(divide(layers, steps.windows), steps.windows, 4)
    return float(us_W4[:, [0, 2]].sum() / steps.windows.total)


def _evidence(kernels: list[KernelRow], operators: list[OperatorRow], gaps: Gaps | None) -> dict[str, str]:
    """What each verdict was seen in."""
    found: dict[str, str] = {}
    if kernels:
        found["compute"] = f"{kernels[0].name} takes {kernels[0].share:.0%} of the kernels' time"
        comm = [row for row in kernels if COMMUNICATION.search(row.name)]
        if comm:
            found["comm"] = f"{comm[0].name}, {comm[0].mean_us / 1e3:.2f} ms each"
    elif operators:
        top = max(operators, key=lambda row: row.host_ms)
        found["compute"] = f"{top.name} takes {top.host_share:.0%} of the operators' time"
    for cause, (name, share) in (gaps.blamed if gaps else {}).items():
        words = {"host_op": "host", "data": "data", "sync": "sync"}
        found[words[cause]] = f"{share:.0%} of it in {name}"
    return found
