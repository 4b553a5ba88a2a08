"""Where a trace's steps lie, on which host thread they run, and which of them are typical."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg import stages
from fastvicreg.errors import UserError
from fastvicreg.profiles.trace.events import ON_DEVICE, Kind, Trace
from fastvicreg.profiles.trace.intervals import Ids, Spans, Times, distinct, last_begun, union
from fastvicreg.profiles.trace.join import Launches

_STEP = re.compile(r"^ProfilerStep[#*]")
_DATA_WAIT = re.compile(rf"^{re.escape(stages.DATA_WAIT)}$")
_OWN = re.compile(rf"^({'|'.join(map(re.escape, stages.ALL))})$")

ODD = 2.0
"""A step that many times longer or shorter than the median is no typical one, as long as such steps are few."""
ODD_OF_FEW, MANY = 4.0, 5
"""The same of fewer than five steps, whose median is hardly known."""
FEW = 1 / 3
DRIVES = 0.02
"""A thread that launches less than this share of the kernels does not drive the device."""

Source = Literal["ProfilerStep", "fv.data_wait", "trace", "annotation"]
Why = Literal["empty", "warm-up", "outlier"]


class Apart(NamedTuple):
    """A step that is told apart from the typical ones."""

    name: str
    ms: float
    why: Why


class Steps(NamedTuple):
    """Windows of host time, one a typical step; ``source`` tells by what they were found ("trace": one span holds all).

    ``reach_W`` are microseconds from when the device has done its part of the step before until it has done this
    step's: what its launches did, wherever it ran. Where nothing ran on a device they are the host's.
    """

    windows: Spans
    names: tuple[str, ...]
    source: Source
    lane: int
    apart: tuple[Apart, ...]
    device_windows: Spans

    @property
    def ms(self) -> Times:
        """(W,) milliseconds on the host."""
        return (self.windows.end_M - self.windows.start_M) / 1e3

    @property
    def device_ms(self) -> Times:
        """(W,) milliseconds until the device has done what the step launched, less what the step before still did."""
        return (self.device_windows.end_M - self.device_windows.start_M) / 1e3


class _Marks(NamedTuple):
    """All steps as they are marked."""

    windows: Spans
    names: Sequence[str]
    source: Source
    lane: int


def find_steps(trace: Trace, launches: Launches, by: str | None = None) -> Steps:
    """By the annotation ``by``; else by the profiler's marks, by our data waits, or the whole trace as one span.

    ``UserError`` where no annotation is called ``by``.
    """
    marks = _marks(trace, by)
    if not len(marks.windows.start_M):
        marks = _whole(trace)
    why = _why(trace, marks.windows)
    reach = _device_windows(trace, launches, marks.windows)
    kept = np.array([one is None for one in why], bool)
    length = marks.windows.end_M - marks.windows.start_M
    apart = tuple(
        Apart(name, float(us / 1e3), one) for name, us, one in zip(marks.names, length, why, strict=True) if one
    )
    names = tuple(name for name, keep in zip(marks.names, kept, strict=True) if keep)
    windows, reach = (Spans(spans.start_M[kept], spans.end_M[kept]) for spans in (marks.windows, reach))
    return Steps(windows, names, marks.source, marks.lane, apart, reach)


def _marks(trace: Trace, by: str | None) -> _Marks:
    marks = trace.where(Kind.ANNOTATION)
    if by is not None:
        return _called(trace, np.concatenate((marks, trace.where(Kind.OP, Kind.PYTHON))), by)
    marks = marks[trace.end_N[marks] > trace.start_N[marks]]
    profiler = marks[trace.named(marks, _STEP)]
    if len(profiler):
        lane, profiler = _busiest(trace, profiler)
        end_W = np.minimum(trace.end_N[profiler], np.append(trace.start_N[profiler][1:], np.inf))
        return _sound(trace.start_N[profiler], end_W, _names(trace, profiler), "ProfilerStep", lane)
    waits = marks[trace.named(marks, _DATA_WAIT)]
    if len(waits):
        lane, waits = _busiest(trace, waits)
        own = marks[trace.named(marks, _OWN) & (trace.lane_N[marks] == lane)]
        start_W = trace.start_N[waits]
        end_W = np.append(start_W[1:], trace.end_N[own].max())
        # The last wait is often an epoch's end, which no step follows.
        keep = np.ones(len(waits), bool)
        keep[-1] = len(waits) == 1 or bool((trace.start_N[own] > start_W[-1]).any())
        names = [f"step {i}" for i in range(int(keep.sum()))]
        return _sound(start_W[keep], end_W[keep], names, "fv.data_wait", lane)
    return _whole(trace)


def _called(trace: Trace, marks: Ids, by: str) -> _Marks:
    """Each from its start to the next one's; the last one as long as it is itself."""
    names = {trace.names[n]: n for n in distinct(trace.name_N[marks]).tolist()}
    found = [n for name, n in names.items() if name == by] or [n for name, n in names.items() if name.startswith(by)]
    marks = np.sort(marks[np.isin(trace.name_N[marks], found)])
    if not len(marks):
        repeated = ", ".join(repeated_marks(trace)[:5]) or "none that repeats"
        raise UserError(f"--steps-by {by}: no annotation has this name in {trace.path}; there are {repeated}.")
    lane, marks = _busiest(trace, marks)
    start_W, end_W = trace.start_N[marks], trace.end_N[marks]
    # An annotation inside another one of its name is no step of its own.
    outer = np.append(True, start_W[1:] >= np.maximum.accumulate(end_W)[:-1])
    marks, start_W, end_W = marks[outer], start_W[outer], end_W[outer]
    until_W = np.append(start_W[1:], end_W[-1])
    if len(until_W) > 2 and until_W[-1] - start_W[-1] < np.median(np.diff(start_W)) / ODD:
        marks, start_W, until_W = marks[:-1], start_W[:-1], until_W[:-1]  # its end is not that of a step
    return _sound(start_W, until_W, _names(trace, marks), "annotation", lane)


def repeated_marks(trace: Trace) -> list[str]:
    """Annotations that could mark steps, the most telling first: they repeat, and cover most of the time."""
    marks = trace.where(Kind.ANNOTATION)
    count = np.bincount(trace.name_N[marks], minlength=len(trace.names))
    length = np.bincount(trace.name_N[marks], (trace.end_N - trace.start_N)[marks], len(trace.names))
    return [trace.names[n] for n in np.argsort(-length, kind="stable").tolist() if count[n] > 2]


def _whole(trace: Trace) -> _Marks:
    timed = trace.where(Kind.OP, Kind.ANNOTATION, Kind.RUNTIME, *ON_DEVICE)
    timed = timed if len(timed) else np.arange(len(trace.kind_N))
    start_W, end_W = trace.start_N[timed].min(keepdims=True), trace.end_N[timed].max(keepdims=True)
    windows = Spans(start_W, np.maximum(end_W, start_W + 1e-3))
    return _Marks(windows, ("the whole trace",), "trace", _main_lane(trace))


def _names(trace: Trace, marks: Ids) -> list[str]:
    return [trace.names[i] for i in trace.name_N[marks].tolist()]


def _sound(start_W: Times, end_W: Times, names: Sequence[str], source: Source, lane: int) -> _Marks:
    long = end_W > start_W
    return _Marks(
        Spans(start_W[long], end_W[long]), [n for n, keep in zip(names, long, strict=True) if keep], source, lane
    )


def _why(trace: Trace, windows: Spans) -> list[Why | None]:
    """Of each step what tells it apart."""
    found: list[Why | None] = [None] * len(windows.start_M)
    work = trace.where(Kind.OP, Kind.RUNTIME, *ON_DEVICE)
    place = last_begun(windows.start_M, trace.start_N[work])
    inside = (place >= 0) & (trace.start_N[work] < windows.end_M[np.maximum(place, 0)])
    count_W = np.bincount(place[inside], minlength=len(found))
    length = windows.end_M - windows.start_M
    median = np.median(length[count_W > 0]) if (count_W > 0).any() else np.median(length)
    for number in np.flatnonzero((count_W == 0) & (count_W.max(initial=0) > 0) & (length < median / ODD)).tolist():
        found[number] = "empty"
    rest = np.array([number for number, why in enumerate(found) if why is None], np.int64)
    odd_at = ODD if len(rest) >= MANY else ODD_OF_FEW
    odd = rest[(length[rest] > odd_at * median) | (length[rest] < median / odd_at)]
    if len(rest) < 3 or len(odd) > FEW * len(rest):
        return found
    first = rest[np.flatnonzero(~np.isin(rest, odd))[0]]
    for number in odd.tolist():
        found[number] = "warm-up" if number < first and length[number] > median else "outlier"
    return found


def _device_windows(trace: Trace, launches: Launches, windows: Spans) -> Spans:
    at = launches.launched_at(trace)
    step = last_begun(windows.start_M, at)
    inside = (step >= 0) & (at < windows.end_M[np.maximum(step, 0)])
    done = np.full(len(windows.start_M), -np.inf)
    np.maximum.at(done, step[inside], trace.end_N[launches.work_D[inside]])
    done = np.maximum.accumulate(np.maximum(done, windows.end_M))
    before = np.append(-np.inf, done[:-1])
    return Spans(np.maximum(windows.start_M, before), done)


def _busiest(trace: Trace, marks: Ids) -> tuple[int, Ids]:
    """The lane that holds most of the marks, and those it holds."""
    lane = int(np.bincount(trace.lane_N[marks]).argmax())
    return lane, marks[trace.lane_N[marks] == lane]


def _main_lane(trace: Trace) -> int:
    """The host thread that works longest; -1 where there is none."""
    work = trace.where(Kind.OP, Kind.ANNOTATION, Kind.RUNTIME)
    covered = {}
    for lane in distinct(trace.lane_N[work]).tolist():
        of_lane = work[trace.lane_N[work] == lane]
        covered[lane] = union(trace.start_N[of_lane], trace.end_N[of_lane]).total
    return max(covered, key=covered.__getitem__, default=-1)


def launching_lanes(trace: Trace, launches: Launches) -> NDArray[np.int64]:
    """The host threads that drive the device: those from which some of its kernels were launched."""
    kernels = (launches.call_D >= 0) & (trace.kind_N[launches.work_D] == Kind.KERNEL)
    count = np.bincount(trace.lane_N[launches.call_D[kernels]])
    return np.flatnonzero((count > 0) & (count >= DRIVES * count.sum()))
