"""What the host does in a step: data, communication, operators, Python between them; and on which threads.

Shape suffix: W steps.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from fastvicreg.profiles.trace.events import Kind, Trace
from fastvicreg.profiles.trace.gaps import NAMELESS, blame
from fastvicreg.profiles.trace.intervals import Ids, Segments, distinct, divide, per_window, select, union
from fastvicreg.profiles.trace.nest import Nest
from fastvicreg.profiles.trace.stages import DATA, DATA_FRAME
from fastvicreg.profiles.trace.steps import Steps

WORK = ("data", "comm", "operators", "python")

_HOST_COMM = re.compile(r"^(gloo|nccl|mpi|ucc|c10d|hccl|xccl):|^fv\.comm$")
_OWN_COMM = re.compile(r"^fv\.comm$")
_BACKWARD = re.compile(r"^autograd::engine::evaluate_function")


class Host(NamedTuple):
    """``segments`` ids index ``WORK``; ``shares`` are of the steps' time; ``frame`` is where most of Python's is."""

    segments: Segments
    shares: dict[str, float]
    frame: tuple[str, float] | None


class ThreadRow(NamedTuple):
    """A thread that runs operators in the steps."""

    name: str
    operators: int
    ms: float


def find_host(trace: Trace, steps: Steps) -> Host:
    """Of a trace in which nothing ran on a device.

    Communication is where the step's thread is in our annotation of a collective, or some thread communicates while
    no operator runs on the step's thread or on autograd's.
    """
    marks, frames, ops = trace.where(Kind.ANNOTATION), trace.where(Kind.PYTHON), trace.where(Kind.OP)
    marks_here = marks[trace.lane_N[marks] == steps.lane]
    frames = frames[trace.lane_N[frames] == steps.lane]
    waits = np.concatenate((marks_here[trace.named(marks_here, DATA)], frames[trace.named(frames, DATA_FRAME)]))
    backward = distinct(trace.lane_N[ops[trace.named(ops, _BACKWARD)]])
    ops = ops[np.isin(trace.lane_N[ops], np.append(backward, steps.lane))]
    comm = marks[trace.named(marks, _HOST_COMM)]
    own = marks_here[trace.named(marks_here, _OWN_COMM)]
    layers = [union(trace.start_N[i], trace.end_N[i]) for i in (waits, own, ops, comm)]
    pieces = divide(layers, steps.windows)
    segments = pieces._replace(id_S=np.array([0, 1, 2, 1, 3])[pieces.id_S])
    us = per_window(segments, steps.windows, len(WORK)).sum(0)
    total = steps.windows.total
    shares = {name: float(value / total) for name, value in zip(WORK, us, strict=True)}
    return Host(segments, shares, _frame(trace, segments, frames, total))


def _frame(trace: Trace, segments: Segments, frames: Ids, total: float) -> tuple[str, float] | None:
    found = blame(trace, select(segments, WORK.index("python")), frames[~trace.named(frames, NAMELESS)])
    return (found[0], found[1] / total) if found else None


def thread_table(trace: Trace, steps: Steps) -> list[ThreadRow]:
    """The threads by the time that their operators take in the steps."""
    nest = Nest(trace, trace.where(Kind.OP))
    ops = nest.events_E[nest.parent_E < 0]
    ops = ops[steps.windows.covers(trace.start_N[ops])]
    rows = []
    for number in distinct(trace.lane_N[ops]).tolist():
        own = ops[trace.lane_N[ops] == number]
        lane = trace.lanes[number]
        name = trace.lane_names.get(lane, "").strip() or f"thread {lane.tid}"
        ms = union(trace.start_N[own], trace.end_N[own]).total / 1e3
        row = ThreadRow(name + " (the step's)" * (number == steps.lane), len(own), float(ms))
        rows.append((-row.ms, number != steps.lane, row))
    return [row for *_, row in sorted(rows)]  # of two that take as long the step's comes first
