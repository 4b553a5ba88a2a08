"""Collects a file's events as columns, chunk by chunk, and puts them in order."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvicreg.errors import UserError, visible
from fastvicreg.profiles.trace.blocks import Ending
from fastvicreg.profiles.trace.decode import Args, Event, Stream, within_64_bits
from fastvicreg.profiles.trace.events import Collective, Lane, Memory, Trace
from fastvicreg.profiles.trace.kinds import IGNORED, KINDS, ON_DEVICE, Kind, kind_of, kind_of_process

_OLD_ANNOTATION = re.compile(r"ProfilerStep[#*]|enumerate\(DataLoader\)#|Optimizer\.|fv\.|## ")
"""Until torch 1.10 annotations were written as operators."""
_NO_ARGS = Args()
_AGE = 1e10
"""Microseconds: what lies this far before all other events has no time, but a default."""


class _Intern(dict[Any, int]):
    """Numbers keys in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self)
        return number


class Columns:
    """Takes lists of events; ``trace`` gives all of them."""

    def __init__(self) -> None:
        self._names, self._lanes, self._shapes = _Intern(), _Intern(), _Intern()
        self._categories, self._collectives = _Intern(), _Intern()
        self._lane_names: dict[Lane, str] = {}
        self._process_names: dict[int | str, str] = {}
        self._chunks: dict[str, list[NDArray[Any]]] = defaultdict(list)
        self._memory: list[tuple[float, int, int, int, int]] = []

    def add(self, events: list[Event]) -> None:
        """Take a chunk's timed events, allocations and names of threads."""
        timed: list[Event] = []
        for event in events:
            if event.ph == "X":
                if event.cat not in IGNORED:
                    timed.append(event)
            elif event.ph == "M":
                self._name_lane(event)
            elif event.name == "[memory]" and event.args and event.ts is not None:
                args = event.args
                device = args.device_id if args.device_type else -1
                size, allocated, reserved = map(
                    within_64_bits, (args.size or args.bytes, args.allocated, args.reserved)
                )
                self._memory.append((event.ts, _device(device), size, allocated, reserved))
        args_N = [event.args or _NO_ARGS for event in timed]
        number, lane, category = self._names.__getitem__, self._lanes.__getitem__, self._categories.__getitem__
        chunk = {
            "category": np.array(
                [category(e.cat if e.cat in KINDS else _unknown(e, a)) for e, a in zip(timed, args_N, strict=True)],
                np.int16,
            ),
            "name": np.array([number(e.name) for e in timed], np.int32),
            "lane": np.array([lane((e.pid, e.tid)) for e in timed], np.int32),
            "device": np.array([_device(a.device) for a in args_N], np.int16),
            "start": np.array([e.ts for e in timed], np.float64),
            "length": np.array([e.dur for e in timed], np.float64),
            "shape": np.array([self._shape(e.name, a) for e, a in zip(timed, args_N, strict=True)], np.int32),
            "external": _ids([a.external if a.external >= 0 else a.old_external for a in args_N]),
            "correlation": _ids([a.correlation for a in args_N]),
            "bytes": _ids([a.bytes for a in args_N]),
            "collective": np.array([-1 if a.collective is None else self._collective(a) for a in args_N], np.int32),
        }
        for column, values in chunk.items():
            self._chunks[column].append(values)

    def trace(self, stream: Stream) -> Trace:
        """All that was taken, in order of start; each column's chunks are let go as it is joined."""

        def joined(column: str) -> NDArray[Any]:
            return np.concatenate(self._chunks.pop(column))

        start, length = joined("start"), joined("length")
        sound = np.isfinite(start) & np.isfinite(length) & (length >= 0)
        lane, (kind, foreign) = joined("lane"), self._kinds(joined("category"))
        self._kinds_by_process(kind, lane)
        known = kind >= 0
        faults = [f"mended while reading: {', '.join(sorted(stream.mended))}."] if stream.mended else []
        timeless = sound & known & (start <= 0)
        if timeless.any() and (start[sound & known & ~timeless] > _AGE).any():
            sound &= ~timeless
            faults.append(f"{int(timeless.sum()):,} events at time 0 left out: they have no time.")
        else:
            timeless[:] = False
        if not (sound & known).any():
            raise UserError(
                f"{stream.path} holds no timed event: profile at least one step, and export after it."
                + (f" It holds only {_counted(foreign)}, which are not known." if foreign else "")
            )
        faults += _ended(stream.ending, int(known.sum()))
        order = np.flatnonzero(sound & known)
        order = order[np.argsort(start[order], kind="stable")]
        first = start[order[0]]
        dropped = stream.malformed + int((known & ~sound & ~timeless).sum())
        start, length = start[order] - first, length[order]
        kind, name, names = kind[order].astype(np.int8), joined("name")[order], [visible(text) for text in self._names]
        old = np.array([bool(_OLD_ANNOTATION.match(text)) for text in names], bool)
        kind[(kind == Kind.OP) & old[name]] = Kind.ANNOTATION
        memory = np.array(self._memory, np.float64).reshape(-1, 5)
        return Trace(
            path=stream.path,
            names=names,
            lanes=[Lane(*key) for key in self._lanes],
            lane_names=self._lane_names,
            shapes=list(self._shapes),
            kind_N=kind,
            name_N=name,
            lane_N=lane[order],
            device_N=joined("device")[order],
            start_N=start,
            end_N=start + length,
            shape_N=joined("shape")[order],
            external_N=joined("external")[order],
            correlation_N=joined("correlation")[order],
            bytes_N=joined("bytes")[order],
            collective_N=joined("collective")[order],
            collectives=[Collective(*key) for key in self._collectives],
            memory=Memory(memory[:, 0] - first, *memory[:, 1:].astype(np.int64).T),
            header=stream.header,
            dropped=dropped,
            faults=tuple(faults),
            foreign=foreign,
        )

    def _kinds(self, category_N: NDArray[np.int16]) -> tuple[NDArray[np.int16], dict[str, int]]:
        """Of each event its kind (-1: not known; ``len(Kind)``: without a category), and the foreign categories."""
        kinds, foreign = np.full(len(self._categories), -1, np.int16), {}
        counts = np.bincount(category_N, minlength=len(kinds))
        for key, place in self._categories.items():
            category, on_device = key if isinstance(key, tuple) else (key, False)
            kind = len(Kind) if category is None else kind_of(category, on_device)
            kinds[place] = -1 if kind is None else kind
            if category is not None and (kind is None or (on_device and kind in ON_DEVICE)):
                foreign[visible(category)] = foreign.get(visible(category), 0) + int(counts[place])
        return kinds[category_N], foreign

    def _kinds_by_process(self, kind_N: NDArray[np.int16], lane_N: NDArray[np.int32]) -> None:
        bare = np.flatnonzero(kind_N == len(Kind))
        for lane in np.unique(lane_N[bare]).tolist():
            pid = list(self._lanes)[lane][0]
            kind = kind_of_process(self._process_names.get(pid, str(pid)))
            kind_N[bare[lane_N[bare] == lane]] = -1 if kind is None else kind

    def _shape(self, name: str, args: Args) -> int:
        if not len(args.dims):
            return -1
        return self._shapes[bytes(args.dims), bytes(args.types), bytes(args.concrete) if "conv" in name else b""]

    def _collective(self, args: Args) -> int:
        return self._collectives[str(args.collective), args.sent, args.received, args.dtype or "", args.group]

    def _name_lane(self, event: Event) -> None:
        if not event.args or event.args.name is None:
            return
        if event.name == "thread_name":
            self._lane_names[Lane(event.pid, event.tid)] = visible(str(event.args.name))
        elif event.name == "process_name":
            self._process_names[event.pid] = str(event.args.name)


def _unknown(event: Event, args: Args) -> tuple[str | None, bool]:
    """The key of a category that ``KINDS`` does not hold: with whether its event names a device or a stream."""
    return event.cat, args.stream != -1 or args.device != -1


def _ended(ending: Ending, count: int) -> list[str]:
    """What is said of a file that was cut off or damaged."""
    if ending.damage:
        rest = f"what follows the first {count:,} events is missing" if ending.cut else "some events may be wrong"
        return [f"the gzip file is damaged ({ending.damage}): {rest}."]
    return [f"the file is cut off: what follows its first {count:,} events is missing."] if ending.cut else []


def _ids(values: list[int]) -> NDArray[np.int64]:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array([within_64_bits(value) for value in values], np.int64)


def _counted(foreign: dict[str, int]) -> str:
    return ", ".join(f"{count:,} events of category {name}" for name, count in foreign.items())


def _device(value: int | str) -> int:
    """A device's number, -1 where the field holds none."""
    return value if isinstance(value, int) and -1 <= value < 1 << 15 else -1
