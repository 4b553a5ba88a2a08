"""A step's events as the page's timeline takes them: lanes of columns, small enough to embed.

Shape suffixes: N events, S segments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.communication import is_communication
from fastvicreg.profiles.trace.device import IDLE, PARTS
from fastvicreg.profiles.trace.events import ON_DEVICE, Kind, Trace
from fastvicreg.profiles.trace.gaps import CAUSES
from fastvicreg.profiles.trace.intervals import Ids, Segments, distinct, last_begun
from fastvicreg.profiles.trace.join import Launches
from fastvicreg.profiles.trace.memory import Use
from fastvicreg.profiles.trace.page_colours import CAUSE_COLOURS, PART_COLOURS, stage_colours
from fastvicreg.profiles.trace.summary import Summary

STEPS = 8
"""Steps of a trace that a page holds, at most."""
EVENTS = 60_000
"""Events of a page, shared by its traces: some 40 bytes each."""
SHARES, LEAST_SPLIT = (2, 4, 4), 40_000
"""Parts of so many events or more that the first three steps have at most, so that none takes all."""
CHANGES = 1_000
"""Changes of a device's memory in a step, at most."""
AWAY = 2_000
"""Launches of a step whose work runs outside of it that are told with it, at most."""
LEAST_EVENTS = 1_500
"""A trace's events, however many share the page."""
_NAME, _SHAPES = 300, 200
_COMM = len(Kind)
"""The page's kind of a kernel that communicates, beside those of ``Kind``."""
_NS = 1e3


class Timeline(NamedTuple):
    """``content`` is what the page's script reads; steps that are not ``kept`` have none of their events in it."""

    content: dict[str, Any]
    kept: tuple[int, ...]
    left_out: int
    """Events of the kept steps that are not in it, the shortest."""


def timeline(summary: Summary, events: int) -> Timeline:
    """The median step, the slowest, the fastest, then the others in order, within ``events`` events."""
    trace, windows = summary.trace, summary.steps.windows
    shown = _Shown(summary)
    steps: dict[int, dict[str, Any]] = {}
    left, left_out = events, 0
    shares = SHARES if events >= LEAST_SPLIT and len(windows.start_M) > 1 else ()
    for place, number in enumerate(_in_order_of_interest(summary.steps.ms)[:STEPS]):
        start, end = float(windows.start_M[number]), float(windows.end_M[number])
        inside = np.flatnonzero((trace.start_N < end) & (trace.end_N > start) & shown.lanes_N)
        limit = min(left, events // shares[place]) if place < len(shares) else left
        if steps and place >= len(shares) and len(inside) > limit:
            break
        chosen = _longest(trace, inside, limit)
        steps[number] = shown.step(start, end, chosen)
        left -= len(chosen)
        left_out += len(inside) - len(chosen)
    return Timeline(
        {
            "first": next(iter(steps)),
            "stages": list(zip(summary.stages.names, stage_colours(summary.stages.names), strict=True)),
            "parts": [*PART_COLOURS.items(), *((f"idle: {name}", colour) for name, colour in CAUSE_COLOURS.items())],
            "lanes": shown.lanes(),
            "names": shown.names.values,
            "shapes": shown.shapes.values,
            "steps": steps,
        },
        tuple(sorted(steps)),
        left_out,
    )


def _in_order_of_interest(ms: NDArray[np.float64]) -> list[int]:
    by_length = np.argsort(ms, kind="stable").tolist()
    return list(dict.fromkeys([by_length[(len(ms) - 1) // 2], by_length[-1], by_length[0], *range(len(ms))]))


def _longest(trace: Trace, events: Ids, count: int) -> Ids:
    """The ``count`` longest, Python's functions after all others, in order of start."""
    if len(events) <= count:
        return events
    length = trace.end_N[events] - trace.start_N[events]
    order = np.lexsort((-length, trace.kind_N[events] == Kind.PYTHON))
    return np.sort(events[order[:count]])


class _Numbered:
    """Texts in the order in which they were first asked for, each once."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self._places: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        place = self._places.setdefault(text, len(self.values))
        if place == len(self.values):
            self.values.append(text)
        return place


class _Shown:
    """What the steps of one trace have in common."""

    def __init__(self, summary: Summary) -> None:
        self.summary, self.trace = summary, summary.trace
        self.names, self.shapes = _Numbered(), _Numbered()
        trace = self.trace
        self._order = _lane_order(summary)
        self.lanes_N = np.isin(trace.lane_N, self._order)
        self._kind_N = trace.kind_N.astype(np.int64)
        kernels = trace.where(Kind.KERNEL)
        self._kind_N[kernels[is_communication(trace, kernels, summary.comm)]] = _COMM
        self._shape_N = _shapes_of_kernels(trace, summary.launches)
        self._call_N = _calls(trace, summary.launches)

    def lanes(self) -> list[dict[str, Any]]:
        """Labels; the step's own thread is first among the threads."""
        found = []
        named = {stream.lane: stream.name for device in self.summary.devices for stream in device.streams}
        on_device = set(self.trace.lane_N[self.trace.where(*ON_DEVICE)].tolist())
        for number in self._order:
            lane = self.trace.lanes[number]
            label = named.get(number) or self.trace.lane_names.get(lane, "").strip()
            kind = "stream" if number in on_device else "thread"
            label = label or (str(lane.tid) if str(lane.tid).startswith(kind) else f"{kind} {lane.tid}")
            found.append({"label": label, "kind": kind, "own": number == self.summary.steps.lane})
        return found

    def step(self, start: float, end: float, chosen: Ids) -> dict[str, Any]:
        """One step's columns, times in ns since its start."""
        trace = self.trace
        place = {lane: [] for lane in self._order}
        lane_N = trace.lane_N[chosen]
        # Outer before inner where both start at once: the page nests them in this order.
        order = np.lexsort((trace.start_N[chosen] - trace.end_N[chosen], trace.start_N[chosen]))
        for lane in self._order:
            place[lane] = chosen[order[lane_N[order] == lane]].tolist()
        return {
            "ns": round((end - start) * _NS),
            "stages": _blocks(self.summary.stages.segments, start, end),
            "device": _device_blocks(self.summary, start, end),
            "lanes": [self._columns(np.array(place[lane], np.int64), start) for lane in self._order],
            "away": self._away(start, end, chosen),
            "late": self._late(start, chosen),
            "memory": {where: _memory(use, start, end) for where, use in self.summary.memory.items()},
        }

    def _away(self, start: float, end: float, chosen: Ids) -> list[tuple[int, int, int, int]]:
        """What the step's calls launched that runs after it: the call, the work's name, start and length."""
        trace, (work, call) = self.trace, (self.summary.launches.work_D, self.summary.launches.call_D)
        late = work[(trace.start_N[work] >= end) & (call >= 0)]
        late = late[np.isin(self._call_N[late], chosen)][:AWAY]
        return [
            (call, self.names[trace.names[name][:_NAME]], round((at - start) * _NS), round(length * _NS))
            for call, name, at, length in zip(
                self._call_N[late].tolist(),
                trace.name_N[late].tolist(),
                trace.start_N[late].tolist(),
                (trace.end_N - trace.start_N)[late].tolist(),
                strict=True,
            )
        ]

    def _late(self, start: float, chosen: Ids) -> list[tuple[int, str]]:
        """The calls before the step whose work runs in it, each with the step that it belongs to ("": none shown)."""
        trace, steps = self.trace, self.summary.steps
        work = self.summary.launches.work_D
        work = work[np.isin(work, chosen)]
        call = distinct(self._call_N[work][self._call_N[work] >= 0])
        call = call[trace.start_N[call] < start]
        step = np.where(steps.windows.covers(at := trace.start_N[call]), last_begun(steps.windows.start_M, at), -1)
        return [(one, steps.names[of] if of >= 0 else "") for one, of in zip(call.tolist(), step.tolist(), strict=True)]

    def _columns(self, events: Ids, origin: float) -> dict[str, list[int]]:
        trace = self.trace
        start = np.round((trace.start_N[events] - origin) * _NS).astype(np.int64)
        length = np.round((trace.end_N[events] - trace.start_N[events]) * _NS).astype(np.int64)
        texts = trace.names
        return {
            "s": np.diff(start, prepend=0).tolist(),
            "d": length.tolist(),
            "n": [self.names[texts[i][:_NAME]] for i in trace.name_N[events].tolist()],
            "k": self._kind_N[events].tolist(),
            "h": [self._shape(i) for i in self._shape_N[events].tolist()],
            "c": self._links(events),
        }

    def _shape(self, number: int) -> int:
        text = shape_text(self.trace.shapes[number]) if number >= 0 else ""
        return self.shapes[text] if text else -1

    def _links(self, events: Ids) -> list[int]:
        """The call that launched each event, which has the same number itself; none on a lane without any."""
        call = self._call_N[events]
        return call.tolist() if (call >= 0).any() else []


def _lane_order(summary: Summary) -> list[int]:
    """Streams by their work, the step's thread, then the other threads by the time that their events take."""
    trace = summary.trace
    start, end = summary.steps.windows.start_M[0], summary.steps.windows.end_M[-1]
    inside = np.flatnonzero((trace.start_N < end) & (trace.end_N > start))
    work = np.bincount(trace.lane_N[inside], (trace.end_N - trace.start_N)[inside], len(trace.lanes))
    present = distinct(trace.lane_N[inside]).tolist()
    on_device = set(trace.lane_N[trace.where(*ON_DEVICE)].tolist())
    # The profiler repeats annotations as the device saw them on lanes that are neither stream nor thread.
    host = set(trace.lane_N[trace.where(Kind.OP, Kind.ANNOTATION, Kind.RUNTIME, Kind.PYTHON)].tolist())
    kept = [lane for lane in present if lane in on_device or lane in host]
    return sorted(kept, key=lambda lane: (lane not in on_device, lane != summary.steps.lane, -work[lane]))


def _calls(trace: Trace, launches: Launches) -> NDArray[np.int64]:
    """Of each event the call that launched it, of such a call itself; -1 for all others."""
    call_N = np.full(len(trace.kind_N), -1, np.int64)
    tied = launches.call_D >= 0
    call_N[launches.work_D[tied]] = call_N[launches.call_D[tied]] = launches.call_D[tied]
    return call_N


def _shapes_of_kernels(trace: Trace, launches: Launches) -> NDArray[np.int32]:
    """Shapes of each event; what runs on a device has those of the operator that launched it."""
    shape_N = trace.shape_N.copy()
    tied = launches.op_D >= 0
    shape_N[launches.work_D[tied]] = trace.shape_N[launches.op_D[tied]]
    return shape_N


def shape_text(shape: tuple[bytes, bytes, bytes]) -> str:
    """``512×1024 float, 1024×256 float`` of a trace's JSON texts; what has no dims (scalars, None) is left out."""
    try:
        dims, types = (json.loads(text) if text else [] for text in shape[:2])
        pairs = zip(dims, types if len(types) == len(dims) else [""] * len(dims), strict=True)
        text = ", ".join(f"{_dims(dim)} {kind}".strip() for dim, kind in pairs if dim)
    except (ValueError, TypeError):
        return ""
    text = re.sub(r"c10::|\s*\(\w+\)", "", text)
    return text if len(text) <= _SHAPES else text[: _SHAPES - 3] + "..."


def _dims(dim: Sequence[Any]) -> str:
    nested = any(isinstance(one, list) for one in dim)
    return "[" + ", ".join(_dims(one) for one in dim) + "]" if nested else "×".join(map(str, dim))  # noqa: RUF001


def _blocks(segments: Segments, start: float, end: float) -> list[list[int]]:
    """[starts, ends, ids] of the segments in a window, neighbours of one id joined; ns since its start."""
    kept = (segments.start_S < end) & (segments.end_S > start)
    start_S, end_S, id_S = (column[kept] for column in segments)
    if not len(id_S):
        return [[], [], []]
    opens = np.append(True, (id_S[1:] != id_S[:-1]) | (start_S[1:] > end_S[:-1]))
    closes = np.append(opens[1:], True)
    edges = [np.round((at - start) * _NS).astype(np.int64).tolist() for at in (start_S[opens], end_S[closes])]
    return [*edges, id_S[opens].tolist()]


def _memory(use: Use, start: float, end: float) -> list[list[int]]:
    """[moments in ns since the step's start, bytes allocated, bytes reserved (none where they were not written)]."""
    part = use.between(start, end).thinned(CHANGES)
    moments = np.round((part.at_N - start) * _NS).astype(np.int64).tolist()
    return [moments, part.allocated_N.tolist(), [] if part.reserved_N is None else part.reserved_N.tolist()]


def _device_blocks(summary: Summary, start: float, end: float) -> list[list[int]] | None:
    """The device's parts, its idle time by cause; ids index the parts but idle, then the causes."""
    if summary.device is None or summary.gaps is None:
        return None
    assert PARTS[IDLE:] == ("idle",)
    assert tuple(CAUSE_COLOURS) == CAUSES
    busy, gaps = summary.device.segments, summary.gaps.segments
    working = busy.id_S != IDLE
    columns = [
        np.concatenate((busy.start_S[working], gaps.start_S)),
        np.concatenate((busy.end_S[working], gaps.end_S)),
        np.concatenate((busy.id_S[working], gaps.id_S + IDLE)),
    ]
    order = np.argsort(columns[0], kind="stable")
    return _blocks(Segments(*(column[order] for column in columns)), start, end)
