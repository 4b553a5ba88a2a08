"""Why a device was idle: each piece of idle time goes to what the host did in it.

Shape suffixes: M idle spans, S segments, C causes, W steps.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.calls import ALLOC, LAUNCH, OTHER, STARTUP, SYNC, roles
from fastvicreg.profiles.trace.device import IDLE, Device
from fastvicreg.profiles.trace.events import Kind, Trace
from fastvicreg.profiles.trace.intervals import (
    EMPTY,
    Ids,
    Segments,
    Spans,
    cut,
    distinct,
    divide,
    per_window,
    select,
    union,
)
from fastvicreg.profiles.trace.join import Launches
from fastvicreg.profiles.trace.nest import Nest
from fastvicreg.profiles.trace.stages import DATA, DATA_FRAME
from fastvicreg.profiles.trace.steps import Steps, launching_lanes

CAUSES = ("data", "sync", "alloc", "startup", "launch", "host_op", "python", "unknown")
LABELS = {cause: cause.replace("_", " ") for cause in CAUSES} | {"alloc": "allocator", "startup": "start-up"}

JOINED_US = 2.0
"""Launch calls that follow each other within this are one."""
_AT_ONCE = 1 << 15
"""Spans looked at together, which bounds the memory."""
LEAST_KNOWN = 0.5
"""Of the device's work; where fewer of the calls that launched it are in the trace, the host was not recorded."""
_LAZY = re.compile("lazy", re.IGNORECASE)
NAMELESS = re.compile(r"^<built-in|^PyTorch Profiler|torch/profiler/")
"""Frames that tell less than those that hold them."""


class Gaps(NamedTuple):
    """``segments`` covers the idle time; its ids index ``CAUSES``."""

    segments: Segments
    cause_us_WC: NDArray[np.float64]
    blamed: dict[str, tuple[str, float]]
    """Of each cause the annotation, call, operator or frame that most of its time fell into, and microseconds in it."""


Tier = dict[str, Ids]
"""Events by the cause they are."""


class _Host(NamedTuple):
    """The step's own thread first: what it does counts before what other threads do that drive the device."""

    tiers: tuple[Tier, Tier]
    frames: Ids
    recorded: bool


def find_gaps(trace: Trace, steps: Steps, device: Device, launches: Launches) -> Gaps:
    """Attribute the idle time.

    data: the step's thread waits for a batch. sync: the host is in a call that waits for the device. alloc: in the
    driver's allocator. startup: it creates a context or loads code. launch: it is in a launch call, or between two that
    follow each other at once. host_op: in another call or an operator. python: the step's thread runs and none of
    these. unknown: nothing of the host was recorded.
    """
    idle = select(device.segments, IDLE)
    host = _host(trace, steps, launches)
    layers = [_covered(trace, tier, cause) for tier in host.tiers for cause in CAUSES[:-2]]
    frames = union(trace.start_N[host.frames], trace.end_N[host.frames])
    layers.append(steps.windows if host.recorded else frames)
    causes = np.array([*(2 * list(range(len(CAUSES) - 2))), len(CAUSES) - 2, len(CAUSES) - 1])
    # The steps' edges cut a gap in two, so that each step has its own share.
    pieces = cut(divide(layers, idle), steps.windows)
    segments = pieces._replace(id_S=causes[pieces.id_S])
    named = host.frames[~trace.named(host.frames, NAMELESS)]
    blamed = {}
    for number, cause in enumerate(CAUSES[:-1]):
        events = named if cause == "python" else np.sort(np.concatenate([tier[cause] for tier in host.tiers]))
        if found := blame(trace, select(segments, number), events):
            blamed[cause] = found
    return Gaps(segments, per_window(segments, steps.windows, len(CAUSES)), blamed)


def _host(trace: Trace, steps: Steps, launches: Launches) -> _Host:
    frames = trace.where(Kind.PYTHON)
    on_lane = trace.lane_N[frames] == steps.lane
    frames = frames[on_lane] if on_lane.any() else frames
    calls, ops = trace.where(Kind.RUNTIME), trace.where(Kind.OP)
    role_C = roles(trace, launches, calls)
    others = np.setdiff1d(launching_lanes(trace, launches), steps.lane)
    own, beside = (_tier(trace, calls, role_C, ops, np.atleast_1d(lanes)) for lanes in (steps.lane, others))
    marks, overhead = trace.where(Kind.ANNOTATION), trace.where(Kind.OVERHEAD)
    marks = marks[trace.named(marks, DATA) & (trace.lane_N[marks] == steps.lane)]
    own["data"] = np.sort(np.concatenate((marks, frames[trace.named(frames, DATA_FRAME)])))
    lazy = overhead[trace.named(overhead, _LAZY)]
    own["startup"] = np.sort(np.concatenate((own["startup"], lazy)))
    written = bool(len(ops) or len(calls))
    return _Host((own, beside), frames, written and (launches.known >= LEAST_KNOWN or not len(calls)))


def _tier(trace: Trace, calls: Ids, role_C: NDArray[np.int8], ops: Ids, lanes: Ids) -> Tier:
    here = np.isin(trace.lane_N[calls], lanes)
    by_role = {
        cause: calls[here & (role_C == role)]
        for cause, role in (("sync", SYNC), ("alloc", ALLOC), ("startup", STARTUP), ("launch", LAUNCH))
    }
    rest = np.concatenate((ops[np.isin(trace.lane_N[ops], lanes)], calls[here & (role_C == OTHER)]))
    return {"data": np.empty(0, np.int64), **by_role, "host_op": np.sort(rest)}


def _covered(trace: Trace, tier: Tier, cause: str) -> Spans:
    events = tier[cause]
    spans = union(trace.start_N[events], trace.end_N[events])
    if cause != "launch" or not len(spans.start_M):
        return spans
    near = np.flatnonzero(spans.start_M[1:] - spans.end_M[:-1] <= JOINED_US)
    between = Spans(spans.end_M[near], spans.start_M[near + 1]) if len(near) else EMPTY
    return union(np.concatenate((spans.start_M, between.start_M)), np.concatenate((spans.end_M, between.end_M)))


def blame(trace: Trace, spans: Spans, events: Ids) -> tuple[str, float] | None:
    """The name in which most of the spans' time lies, innermost on its thread, and how much, in microseconds."""
    if not len(spans.start_M) or not len(events):
        return None
    length = np.zeros(len(trace.names))
    start, reach = trace.start_N[events], np.maximum.accumulate(trace.end_N[events])  # events are in order of start
    for first in range(0, len(spans.start_M), _AT_ONCE):
        part = Spans(*(edge[first : first + _AT_ONCE] for edge in spans))
        near = events[np.searchsorted(reach, part.start_M[0]) : np.searchsorted(start, part.end_M[-1], side="right")]
        begun = np.searchsorted(part.start_M, trace.end_N[near])
        ended = np.searchsorted(part.end_M, trace.start_N[near], side="right")
        nest = Nest(trace, near[begun > ended])
        for lane in distinct(trace.lane_N[nest.events_E]).tolist():
            pieces = cut(nest.segments(lane), part)
            names = trace.name_N[nest.events_E[pieces.id_S]]
            length += np.bincount(names, pieces.end_S - pieces.start_S, len(trace.names))
    if not length.any():
        return None
    most = np.flatnonzero(length == length.max()).tolist()
    return min(trace.names[number] for number in most), float(length.max())
