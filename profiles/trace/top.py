"""``trace top``: the longest Python functions, operators or kernels of a trace, as one table.

Shape suffix: E events of a nest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace.events import Kind
from fastvicreg.profiles.trace.join import device_times
from fastvicreg.profiles.trace.nest import Nest
from fastvicreg.profiles.trace.summary import Summary

BY = ("python", "operator", "kernel")


class TopRow(NamedTuple):
    """Milliseconds in the steps: of its own, with what it called, and on the device (of an operator's own launches)."""

    name: str
    calls: int
    own_ms: float
    whole_ms: float
    device_ms: float


def top(summary: Summary, by: str) -> list[TopRow]:
    """By own time, kernels by their time. ``UserError`` where the trace holds none of these."""
    if by == "kernel":
        rows = [TopRow(row.name, row.calls, row.ms, row.ms, row.ms) for row in summary.kernels]
        return rows or _none(summary, "kernel", "profile with ProfilerActivity.CUDA")
    if by == "operator":
        rows = _rows(summary, summary.launches.ops, device=True)
        return rows or _none(summary, "operator", "profile with ProfilerActivity.CPU")
    rows = _rows(summary, Nest(summary.trace, summary.trace.where(Kind.PYTHON)), device=False)
    return rows or _none(summary, "Python function", "profile with with_stack=True")


def _rows(summary: Summary, nest: Nest, *, device: bool) -> list[TopRow]:
    trace = summary.trace
    events, own = nest.events_E, nest.own_times()
    inside = summary.steps.windows.covers(trace.start_N[events])
    name_E = trace.name_N[events]
    # A function that calls itself is inside itself already.
    outer = inside & ~_in_their_like(nest, name_E)
    length = (trace.end_N - trace.start_N)[events]
    size = len(trace.names)
    calls, own_us = np.bincount(name_E[inside], minlength=size), np.bincount(name_E[inside], own[inside], size)
    whole_us = np.bincount(name_E[outer], length[outer], size)
    on_device = device_times(trace, summary.launches)[events] if device else np.zeros(len(events))
    device_us = np.bincount(name_E[inside], on_device[inside], size)
    rows = [
        TopRow(trace.names[n], int(calls[n]), own_us[n] / 1e3, whole_us[n] / 1e3, device_us[n] / 1e3)
        for n in np.flatnonzero(calls).tolist()
    ]
    return sorted(rows, key=lambda row: (-row.own_ms, row.name))


def _in_their_like(nest: Nest, name_E: np.ndarray) -> np.ndarray:
    """Which events another one of their name holds."""
    held = np.zeros(len(name_E), bool)
    above = nest.parent_E.copy()
    while True:
        there = np.flatnonzero(above >= 0)
        if not len(there):
            return held
        held[there] |= name_E[above[there]] == name_E[there]
        above[there] = nest.parent_E[above[there]]


def _none(summary: Summary, kind: str, how: str) -> list[TopRow]:
    raise UserError(f"{summary.trace.path} holds no {kind} in its steps: {how}.")
