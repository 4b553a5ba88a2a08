"""Why the device was idle: each piece of idle time goes to data, sync, launch, host op or python, in this order."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.device import IDLE, Device
from fastvicreg.profiles.trace.events import Kind, Trace
from fastvicreg.profiles.trace.intervals import (
    Ids,
    Segments,
    Spans,
    Times,
    cut,
    divide,
    innermost,
    per_window,
    select,
    union,
)
from fastvicreg.profiles.trace.stages import DATA
from fastvicreg.profiles.trace.steps import Steps, launching_lanes

CAUSES = ("data", "sync", "launch", "host_op", "python")

_SYNC = re.compile(r"Synchronize$|^(cuda|hip)(Free|Memcpy|MemcpyWithStream)$|^cuMemcpy[DH]to[DH]")
"""Calls in which the host waits for the device."""


class Gaps(NamedTuple):
    """``segments`` covers the idle time; its ids index ``CAUSES``."""

    segments: Segments
    cause_us_WC: NDArray[np.float64]
    blamed: dict[str, tuple[str, float]]
    """Of each cause the annotation, operator or call that most of its time fell into, and that share of it."""


def find_gaps(trace: Trace, steps: Steps, device: Device) -> Gaps:
    """Attribute the idle time.

    data: the step's thread waits for a batch. sync: the host waits in a synchronising call. launch: it is in another
    call of the runtime, or the kernel that ends the gap has been launched and has not started. host_op: it is in an
    operator. python: none of these.
    """
    idle = select(device.segments, IDLE)
    lanes = launching_lanes(trace, steps)

    def on_lanes(*kinds: Kind) -> Ids:
        chosen = trace.where(*kinds)
        return chosen[np.isin(trace.lane_N[chosen], lanes)]

    marks = trace.where(Kind.ANNOTATION)
    waits = marks[trace.named(marks, DATA) & (trace.lane_N[marks] == steps.lane)]
    calls, ops = on_lanes(Kind.RUNTIME), on_lanes(Kind.OP)
    is_sync = trace.named(calls, _SYNC)
    tails = _launch_tails(trace, device, idle)
    launches = union(
        np.concatenate((trace.start_N[calls[~is_sync]], tails.start_M)),
        np.concatenate((trace.end_N[calls[~is_sync]], tails.end_M)),
    )
    layers = [
        union(trace.start_N[waits], trace.end_N[waits]),
        union(trace.start_N[calls[is_sync]], trace.end_N[calls[is_sync]]),
        launches,
        union(trace.start_N[ops], trace.end_N[ops]),
    ]
    # The steps' edges cut a gap in two, so that each step has its own share.
    segments = cut(divide(layers, idle), steps.windows)
    cause_us_WC = per_window(segments, steps.windows, len(CAUSES))
    return Gaps(segments, cause_us_WC, _blame(trace, segments, {"data": waits, "sync": ops, "host_op": ops}))


def _launch_tails(trace: Trace, device: Device, idle: Spans) -> Spans:
    """Of each gap the part after the launch of the device event that ends it."""
    calls = trace.where(Kind.RUNTIME)
    calls = calls[trace.correlation_N[calls] >= 0]
    number, first = np.unique(trace.correlation_N[calls], return_index=True)
    begun: Times = trace.start_N[calls][first]
    ending = np.searchsorted(trace.start_N[device.events_N], idle.end_M)
    ended = ending < len(device.events_N)
    event = device.events_N[ending[ended]]
    place = np.searchsorted(number, trace.correlation_N[event])
    known = place < len(number)
    known[known] = number[place[known]] == trace.correlation_N[event[known]]
    start, end = idle.start_M[ended][known], idle.end_M[ended][known]
    # A window's edge may end the gap before the event starts; the launch tells all the same.
    return union(np.maximum(start, begun[place[known]]), end)


def _blame(trace: Trace, segments: Segments, candidates: dict[str, Ids]) -> dict[str, tuple[str, float]]:
    found = {}
    for cause, events in candidates.items():
        spans = select(segments, CAUSES.index(cause))
        if not len(spans.start_M) or not len(events):
            continue
        begun = np.searchsorted(spans.start_M, trace.end_N[events])
        ended = np.searchsorted(spans.end_M, trace.start_N[events], side="right")
        reached = events[begun > ended]
        pieces = cut(innermost(trace.start_N[reached], trace.end_N[reached]), spans)
        if not len(pieces.id_S):
            continue
        length = np.bincount(trace.name_N[reached[pieces.id_S]], pieces.end_S - pieces.start_S)
        found[cause] = (trace.names[int(length.argmax())], float(length.max() / spans.total))
    return found
