"""What the device did in each step: compute, exposed communication, copies, nothing; and on which streams."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.events import ON_DEVICE, Kind, Trace
from fastvicreg.profiles.trace.intervals import Ids, Segments, divide, per_window, union
from fastvicreg.profiles.trace.steps import Steps

PARTS = ("compute", "comm", "copy", "idle")
IDLE = PARTS.index("idle")

COMMUNICATION = re.compile(
    r"nccl|rccl|msccl|nvshmem|cross_device_reduce|(?:one|two)_shot_all_?reduce|multimem_all_?reduce", re.IGNORECASE
)
"""Kernels that wait for other devices while they run: busy is not what they are."""


class Stream(NamedTuple):
    """One queue of a device and the time in the steps that it was occupied."""

    lane: int
    name: str
    events: int
    busy_us: float


class Device(NamedTuple):
    """The device with the most kernel time; ``segments`` ids index ``PARTS``."""

    number: int
    others: tuple[int, ...]
    name: str | None
    events_N: Ids
    """Indices of its kernels, copies and memsets, in order of start."""
    segments: Segments
    part_us_WP: NDArray[np.float64]
    streams: tuple[Stream, ...]


def find_device(trace: Trace, steps: Steps) -> Device | None:
    """None where nothing ran on a device: a trace of the host alone says nothing of one.

    Compute hides communication, both hide copies: ``comm`` and ``copy`` are what nothing before them overlapped.
    """
    events = trace.where(*ON_DEVICE)
    if not len(events):
        return None
    length = trace.end_N[events] - trace.start_N[events]
    numbers = np.unique(trace.device_N[events])
    kernel = trace.kind_N[events] == Kind.KERNEL
    number = int(max(numbers, key=lambda n: length[kernel & (trace.device_N[events] == n)].sum()))
    events = events[trace.device_N[events] == number]
    is_kernel = trace.kind_N[events] == Kind.KERNEL
    is_comm = is_kernel & trace.named(events, COMMUNICATION)
    layers = [
        union(trace.start_N[chosen], trace.end_N[chosen])
        for chosen in (events[is_kernel & ~is_comm], events[is_comm], events[~is_kernel])
    ]
    segments = divide(layers, steps.windows)
    return Device(
        number=number,
        others=tuple(int(n) for n in numbers if n != number),
        name=trace.device_name,
        events_N=events,
        segments=segments,
        part_us_WP=per_window(segments, steps.windows, len(PARTS)),
        streams=_streams(trace, steps, events),
    )


def _streams(trace: Trace, steps: Steps, events: Ids) -> tuple[Stream, ...]:
    found = []
    for lane in np.unique(trace.lane_N[events]).tolist():
        own = events[trace.lane_N[events] == lane]
        busy = divide([union(trace.start_N[own], trace.end_N[own])], steps.windows)
        occupied = float(per_window(busy, steps.windows, 2)[:, 0].sum())
        name = str(trace.lanes[lane].tid)
        found.append(Stream(lane, name if name.startswith("stream") else f"stream {name}", len(own), occupied))
    return tuple(sorted(found, key=lambda stream: -stream.busy_us))
