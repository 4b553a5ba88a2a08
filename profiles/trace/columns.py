"""Collects a file's events as columns, chunk by chunk, and puts them in order."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvicreg.errors import UserError, visible
from fastvicreg.profiles.trace.blocks import Ending
from fastvicreg.profiles.trace.chunk import NUMBERED, Chunk, Intern
from fastvicreg.profiles.trace.decode import Stream
from fastvicreg.profiles.trace.events import Collective, Lane, Memory, Trace
from fastvicreg.profiles.trace.intervals import distinct
from fastvicreg.profiles.trace.kinds import ON_DEVICE, Kind, kind_of, kind_of_process

_OLD_ANNOTATION = re.compile(r"ProfilerStep[#*]|enumerate\(DataLoader\)#|Optimizer\.|fv\.|## ")
"""Until torch 1.10 annotations were written as operators."""
_AGE = 1e10
"""Microseconds: what lies this far before all other events has no time, but a default."""


class Columns:
    """Takes chunks in the file's order; ``trace`` gives all of them."""

    def __init__(self) -> None:
        self._tables = {name: Intern() for name in NUMBERED}
        self._lane_names: dict[Lane, str] = {}
        self._process_names: dict[int | str, str] = {}
        self._columns: dict[str, list[NDArray[Any]]] = defaultdict(list)
        self._memory: list[tuple[float, int, int, int, int]] = []

    def add(self, chunk: Chunk) -> None:
        """What the chunk numbers for itself gets the numbers of all."""
        for name, values in chunk.columns.items():
            if name in NUMBERED:
                number = self._tables[name].__getitem__
                numbers = np.array([*map(number, chunk.tables[name]), -1], NUMBERED[name])
                values = numbers[values]  # -1 is the last one
            self._columns[name].append(values)
        self._lane_names.update((Lane(*lane), name) for lane, name in chunk.lane_names.items())
        self._process_names.update(chunk.process_names)
        self._memory += chunk.memory

    def trace(self, stream: Stream) -> Trace:
        """All that was taken, in order of start; each column's chunks are let go as it is joined."""

        def joined(column: str) -> NDArray[Any]:
            return np.concatenate(self._columns.pop(column))

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
        kind, name = kind[order].astype(np.int8), joined("name")[order]
        names = [visible(text) for text in self._tables["name"]]
        old = np.array([bool(_OLD_ANNOTATION.match(text)) for text in names], bool)
        kind[(kind == Kind.OP) & old[name]] = Kind.ANNOTATION
        memory = np.array(self._memory, np.float64).reshape(-1, 5)
        return Trace(
            path=stream.path,
            names=names,
            lanes=[Lane(*key) for key in self._tables["lane"]],
            lane_names=self._lane_names,
            shapes=list(self._tables["shape"]),
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
            collectives=[Collective(*key) for key in self._tables["collective"]],
            memory=Memory(memory[:, 0] - first, *memory[:, 1:].astype(np.int64).T),
            header=stream.header,
            dropped=dropped,
            faults=tuple(faults),
            foreign=foreign,
        )

    def _kinds(self, category_N: NDArray[np.int16]) -> tuple[NDArray[np.int16], dict[str, int]]:
        """Of each event its kind (-1: not known; ``len(Kind)``: without a category), and the foreign categories."""
        kinds, foreign = np.full(len(self._tables["category"]), -1, np.int16), {}
        counts = np.bincount(category_N, minlength=len(kinds))
        for key, place in self._tables["category"].items():
            category, on_device = key if isinstance(key, tuple) else (key, False)
            kind = len(Kind) if category is None else kind_of(category, on_device)
            kinds[place] = -1 if kind is None else kind
            if category is not None and (kind is None or (on_device and kind in ON_DEVICE)):
                foreign[visible(category)] = foreign.get(visible(category), 0) + int(counts[place])
        return kinds[category_N], foreign

    def _kinds_by_process(self, kind_N: NDArray[np.int16], lane_N: NDArray[np.int32]) -> None:
        bare = np.flatnonzero(kind_N == len(Kind))
        for lane in distinct(lane_N[bare]).tolist():
            pid = list(self._tables["lane"])[lane][0]
            kind = kind_of_process(self._process_names.get(pid, str(pid)))
            kind_N[bare[lane_N[bare] == lane]] = -1 if kind is None else kind


def _ended(ending: Ending, count: int) -> list[str]:
    """What is said of a file that was cut off or damaged."""
    if ending.damage:
        rest = f"what follows the first {count:,} events is missing" if ending.cut else "some events may be wrong"
        return [f"the gzip file is damaged ({ending.damage}): {rest}."]
    return [f"the file is cut off: what follows its first {count:,} events is missing."] if ending.cut else []


def _counted(foreign: dict[str, int]) -> str:
    return ", ".join(f"{count:,} events of category {name}" for name, count in foreign.items())
