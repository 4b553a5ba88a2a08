"""Where a trace's steps lie, and on which host thread they run."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import numpy as np

from fastvicreg import stages
from fastvicreg.profiles.trace.events import ON_DEVICE, Kind, Trace
from fastvicreg.profiles.trace.intervals import Ids, Spans, Times, union

_STEP = re.compile(r"^ProfilerStep[#*]")
_DATA_WAIT = re.compile(rf"^{re.escape(stages.DATA_WAIT)}$")
_OWN = re.compile(rf"^({'|'.join(map(re.escape, stages.ALL))})$")

Source = Literal["ProfilerStep", "fv.data_wait", "trace"]


class Steps(NamedTuple):
    """Windows of host time, one a step; ``source`` tells by what they were found ("trace": one span holds all)."""

    windows: Spans
    names: tuple[str, ...]
    source: Source
    lane: int

    @property
    def ms(self) -> Times:
        """(W,) milliseconds."""
        return (self.windows.end_M - self.windows.start_M) / 1e3


def find_steps(trace: Trace) -> Steps:
    """By the profiler's own marks; without them by our data waits; else the whole trace as one span."""
    marks = trace.where(Kind.ANNOTATION)
    marks = marks[trace.end_N[marks] > trace.start_N[marks]]
    profiler = marks[trace.named(marks, _STEP)]
    if len(profiler):
        lane, profiler = _busiest(trace, profiler)
        names = tuple(trace.names[i] for i in trace.name_N[profiler])
        end_W = np.minimum(trace.end_N[profiler], np.append(trace.start_N[profiler][1:], np.inf))
        return _steps(trace.start_N[profiler], end_W, names, "ProfilerStep", lane)
    waits = marks[trace.named(marks, _DATA_WAIT)]
    if len(waits):
        lane, waits = _busiest(trace, waits)
        own = marks[trace.named(marks, _OWN) & (trace.lane_N[marks] == lane)]
        start_W = trace.start_N[waits]
        end_W = np.append(start_W[1:], trace.end_N[own].max())
        # The last wait is often an epoch's end, which no step follows.
        keep = np.ones(len(waits), bool)
        keep[-1] = len(waits) == 1 or bool((trace.start_N[own] > start_W[-1]).any())
        names = tuple(f"step {i}" for i in range(int(keep.sum())))
        return _steps(start_W[keep], end_W[keep], names, "fv.data_wait", lane)
    timed = trace.where(Kind.OP, Kind.ANNOTATION, Kind.RUNTIME, *ON_DEVICE)
    timed = timed if len(timed) else np.arange(len(trace.kind_N))
    start_W, end_W = trace.start_N[timed].min(keepdims=True), trace.end_N[timed].max(keepdims=True)
    return _steps(start_W, np.maximum(end_W, start_W + 1e-3), ("the whole trace",), "trace", _main_lane(trace))


def _steps(start_W: Times, end_W: Times, names: tuple[str, ...], source: Source, lane: int) -> Steps:
    whole_W = end_W > start_W
    kept = tuple(name for name, whole in zip(names, whole_W, strict=True) if whole)
    return Steps(Spans(start_W[whole_W], end_W[whole_W]), kept, source, lane)


def _busiest(trace: Trace, marks: Ids) -> tuple[int, Ids]:
    """The lane that holds most of the marks, and those it holds."""
    lane = int(np.bincount(trace.lane_N[marks]).argmax())
    return lane, marks[trace.lane_N[marks] == lane]


def _main_lane(trace: Trace) -> int:
    """The host thread that works longest; -1 where there is none."""
    work = trace.where(Kind.OP, Kind.ANNOTATION, Kind.RUNTIME)
    covered = {}
    for lane in np.unique(trace.lane_N[work]).tolist():
        of_lane = work[trace.lane_N[work] == lane]
        covered[lane] = union(trace.start_N[of_lane], trace.end_N[of_lane]).total
    return max(covered, key=covered.__getitem__, default=-1)


def launching_lanes(trace: Trace, steps: Steps) -> Ids:
    """The host threads that drive the device: the step's own, and each from which device work was launched."""
    calls = trace.where(Kind.RUNTIME)
    launched = np.isin(trace.correlation_N[calls], trace.correlation_N[trace.where(*ON_DEVICE)])
    launched &= trace.correlation_N[calls] >= 0
    return np.unique(np.append(trace.lane_N[calls[launched]], steps.lane)).astype(np.int64)
