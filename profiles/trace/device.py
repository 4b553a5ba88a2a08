"""What each device did in each step: compute, exposed communication, copies, nothing; and on which streams."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.communication import is_communication
from fastvicreg.profiles.trace.events import ON_DEVICE, Kind, Trace
from fastvicreg.profiles.trace.intervals import Ids, Segments, Spans, distinct, divide, per_window, union
from fastvicreg.profiles.trace.steps import Steps

PARTS = ("compute", "comm", "copy", "idle")
IDLE = PARTS.index("idle")

LEAST = 0.1
"""A device that works less than this share of the busiest one's time is named, but its idleness is not counted."""

WAIT = re.compile(r"^(?:event|notify)_?wait$|^wait_?event$", re.IGNORECASE)
"""Work of a device that only waits for another of its queues."""


class Stream(NamedTuple):
    """One queue of a device and the time in the steps that it was occupied."""

    lane: int
    name: str
    events: int
    busy_us: float


class Device(NamedTuple):
    """One device; ``segments`` ids index ``PARTS``."""

    number: int
    name: str | None
    events_N: Ids
    """Indices of its kernels, copies and memsets, in order of start."""
    layers: tuple[Spans, Spans, Spans]
    """When it computed, communicated and copied; these overlap."""
    segments: Segments
    part_us_WP: NDArray[np.float64]
    streams: tuple[Stream, ...]

    @property
    def busy_us(self) -> float:
        """Microseconds in the steps in which anything ran."""
        return float(self.part_us_WP[:, :IDLE].sum())


def find_devices(trace: Trace, steps: Steps, comm: str | None = None) -> tuple[Device, ...]:
    """All devices on which something ran, the busiest first; none in a trace of the host alone.

    Compute hides communication, both hide copies: ``comm`` and ``copy`` are what nothing before them overlapped.
    ``comm`` as an argument is a pattern of further kernels that communicate.
    """
    events = trace.where(*ON_DEVICE)
    is_comm = (trace.kind_N[events] == Kind.KERNEL) & is_communication(trace, events, comm)
    found = []
    for number in distinct(trace.device_N[events]).tolist():
        own = trace.device_N[events] == number
        found.append(_device(trace, steps, int(number), events[own], is_comm[own]))
    return tuple(sorted(found, key=lambda device: (-device.busy_us, device.number)))


def _device(trace: Trace, steps: Steps, number: int, events: Ids, is_comm: NDArray[np.bool_]) -> Device:
    is_kernel = (trace.kind_N[events] == Kind.KERNEL) & ~trace.named(events, WAIT)
    compute, comm, copy = (
        union(trace.start_N[chosen], trace.end_N[chosen])
        for chosen in (events[is_kernel & ~is_comm], events[is_comm], events[trace.kind_N[events] != Kind.KERNEL])
    )
    segments = divide([compute, comm, copy], steps.windows)
    return Device(
        number=number,
        name=trace.device_name,
        events_N=events,
        layers=(compute, comm, copy),
        segments=segments,
        part_us_WP=per_window(segments, steps.windows, len(PARTS)),
        streams=_streams(trace, steps, events),
    )


def counted(devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """Those that work for a tenth of the busiest one's time at least."""
    return tuple(device for device in devices if device.busy_us >= LEAST * devices[0].busy_us)


def _streams(trace: Trace, steps: Steps, events: Ids) -> tuple[Stream, ...]:
    found = []
    for lane in distinct(trace.lane_N[events]).tolist():
        own = events[trace.lane_N[events] == lane]
        busy = divide([union(trace.start_N[own], trace.end_N[own])], steps.windows)
        occupied = float(per_window(busy, steps.windows, 2)[:, 0].sum())
        name = str(trace.lanes[lane].tid)
        found.append(Stream(lane, name if name.startswith("stream") else f"stream {name}", len(own), occupied))
    return tuple(sorted(found, key=lambda stream: -stream.busy_us))
