"""A trace in memory: every timed event as columns, names and shapes interned, whichever version wrote it.

Shape suffix: N events.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace.decode import Args, Event, Stream


class Kind(IntEnum):
    """What an event is; the categories of all versions of the profiler map to these."""

    OP = 0  # an operator on a host thread
    ANNOTATION = 1  # record_function and the profiler's own ranges, on a host thread
    RUNTIME = 2  # a call of the CUDA or HIP runtime or driver
    KERNEL = 3
    COPY = 4
    MEMSET = 5
    PYTHON = 6  # a Python function, where stacks were recorded
    DEVICE_ANNOTATION = 7  # an annotation as the device saw it


_KINDS = {
    "cpu_op": Kind.OP,
    "Operator": Kind.OP,
    "user_annotation": Kind.ANNOTATION,
    "cuda_runtime": Kind.RUNTIME,
    "cuda_driver": Kind.RUNTIME,
    "hip_runtime": Kind.RUNTIME,
    "xpu_runtime": Kind.RUNTIME,
    "Runtime": Kind.RUNTIME,
    "kernel": Kind.KERNEL,
    "Kernel": Kind.KERNEL,
    "gpu_memcpy": Kind.COPY,
    "Memcpy": Kind.COPY,
    "gpu_memset": Kind.MEMSET,
    "Memset": Kind.MEMSET,
    "python_function": Kind.PYTHON,
    "gpu_user_annotation": Kind.DEVICE_ANNOTATION,
}
ON_DEVICE = (Kind.KERNEL, Kind.COPY, Kind.MEMSET)

_OLD_ANNOTATION = re.compile(r"ProfilerStep[#*]|enumerate\(DataLoader\)#|Optimizer\.|fv\.|## ")
"""Until torch 1.10 annotations were written as operators."""
_RANK = re.compile(r"rank[-_]?(\d+)", re.IGNORECASE)
_NO_ARGS = Args()


class Lane(NamedTuple):
    """A host thread or a device stream, as the file names it."""

    pid: int | str
    tid: int | str


@dataclass(frozen=True)
class Memory:
    """The allocator's log: ``device_N`` is -1 for the host; ``allocated_N`` -1 where the total was not written."""

    at_N: NDArray[np.float64]
    device_N: NDArray[np.int64]
    bytes_N: NDArray[np.int64]
    allocated_N: NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """One process's trace, in order of start; times are microseconds since the first event.

    ``name_N``, ``lane_N`` and ``shape_N`` index ``names``, ``lanes`` and ``shapes`` (-1: no shapes).
    ``external_N`` ties a kernel to the operator that launched it, ``correlation_N`` to the runtime's call (-1: none).
    """

    path: Path
    names: list[str]
    lanes: list[Lane]
    lane_names: dict[Lane, str]
    shapes: list[tuple[bytes, bytes, bytes]]
    """JSON text of input dims, input types and, of convolutions, concrete inputs."""
    kind_N: NDArray[np.int8]
    name_N: NDArray[np.int32]
    lane_N: NDArray[np.int32]
    device_N: NDArray[np.int16]
    start_N: NDArray[np.float64]
    end_N: NDArray[np.float64]
    shape_N: NDArray[np.int32]
    external_N: NDArray[np.int64]
    correlation_N: NDArray[np.int64]
    bytes_N: NDArray[np.int64]
    memory: Memory
    header: dict[str, Any]
    dropped: int
    """Events left out: malformed, of negative length, or without a finite time."""

    def where(self, *kinds: Kind) -> NDArray[np.int64]:
        """Indices of the events of these kinds."""
        return np.flatnonzero(np.isin(self.kind_N, kinds))

    def named(self, indices: NDArray[np.int64], pattern: re.Pattern[str]) -> NDArray[np.bool_]:
        """Which of these events' names ``pattern`` finds; each distinct name is tried once."""
        unique, inverse = np.unique(self.name_N[indices], return_inverse=True)
        hits = np.array([bool(pattern.search(self.names[i])) for i in unique.tolist()], bool)
        return hits[inverse] if len(unique) else np.zeros(0, bool)

    @property
    def device_name(self) -> str | None:
        """Of the first device that the header lists and a kernel ran on."""
        used = set(self.device_N[self.where(Kind.KERNEL)].tolist())
        properties = self.header.get("deviceProperties")
        for device in properties if isinstance(properties, list) else []:
            if isinstance(device, dict) and device.get("id") in used:
                return str(device.get("name"))
        return None

    @property
    def rank(self) -> int | None:
        """From the header, else from the file's name."""
        info = self.header.get("distributedInfo")
        if isinstance(info, dict) and isinstance(info.get("rank"), int):
            return info["rank"]
        found = _RANK.search(self.path.name)
        return int(found.group(1)) if found else None


class _Intern(dict[Any, int]):
    """Numbers keys in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self)
        return number


def read_trace(path: str | Path) -> Trace:
    """Read one file of torch.profiler, of any version.

    ``UserError`` where it cannot be read, is damaged, is no trace, or holds no timed event.
    """
    stream = Stream(Path(path))
    columns = _Columns()
    for events in stream.chunks():
        columns.add(events)
    return columns.trace(stream)


class _Columns:
    def __init__(self) -> None:
        self._names, self._lanes, self._shapes = _Intern(), _Intern(), _Intern()
        self._lane_names: dict[Lane, str] = {}
        self._chunks: dict[str, list[NDArray[Any]]] = defaultdict(list)
        self._memory: list[tuple[float, int, int, int]] = []

    def add(self, events: list[Event]) -> None:
        """Take a chunk's timed events, allocations and names of threads."""
        kinds = _KINDS
        timed: list[Event] = []
        for event in events:
            if event.ph == "X":
                if event.cat in kinds:
                    timed.append(event)
            elif event.ph == "M":
                self._name_lane(event)
            elif event.name == "[memory]" and event.args and event.ts is not None:
                args = event.args
                device = args.device_id if args.device_type else -1
                self._memory.append((event.ts, device, args.size or args.bytes, args.allocated))
        args_N = [event.args or _NO_ARGS for event in timed]
        number, lane = self._names.__getitem__, self._lanes.__getitem__
        chunk = {
            "kind": np.array([kinds[e.cat] for e in timed], np.int8),  # type: ignore[index]
            "name": np.array([number(e.name) for e in timed], np.int32),
            "lane": np.array([lane((e.pid, e.tid)) for e in timed], np.int32),
            "device": np.array([_device(a.device) for a in args_N], np.int16),
            "start": np.array([e.ts for e in timed], np.float64),
            "length": np.array([e.dur for e in timed], np.float64),
            "shape": np.array([self._shape(e.name, a) for e, a in zip(timed, args_N, strict=True)], np.int32),
            "external": np.array([a.external if a.external >= 0 else a.old_external for a in args_N], np.int64),
            "correlation": np.array([a.correlation for a in args_N], np.int64),
            "bytes": np.array([a.bytes for a in args_N], np.int64),
        }
        for column, values in chunk.items():
            self._chunks[column].append(values)

    def trace(self, stream: Stream) -> Trace:
        """All that was taken, in order of start; each column's chunks are let go as it is joined."""

        def joined(column: str) -> NDArray[Any]:
            return np.concatenate(self._chunks.pop(column))

        start, length = joined("start"), joined("length")
        sound = np.isfinite(start) & np.isfinite(length) & (length >= 0)
        if not sound.any():
            raise UserError(f"{stream.path} holds no timed event: profile at least one step, and export after it.")
        order = np.flatnonzero(sound)[np.argsort(start[sound], kind="stable")]
        first = start[order[0]]
        start, length = start[order] - first, length[order]
        kind, name, names = joined("kind")[order], joined("name")[order], list(self._names)
        old = np.array([bool(_OLD_ANNOTATION.match(text)) for text in names], bool)
        kind[(kind == Kind.OP) & old[name]] = Kind.ANNOTATION
        memory = np.array(self._memory, np.float64).reshape(-1, 4)
        return Trace(
            path=stream.path,
            names=names,
            lanes=[Lane(*key) for key in self._lanes],
            lane_names=self._lane_names,
            shapes=list(self._shapes),
            kind_N=kind,
            name_N=name,
            lane_N=joined("lane")[order],
            device_N=joined("device")[order],
            start_N=start,
            end_N=start + length,
            shape_N=joined("shape")[order],
            external_N=joined("external")[order],
            correlation_N=joined("correlation")[order],
            bytes_N=joined("bytes")[order],
            memory=Memory(memory[:, 0] - first, *memory[:, 1:].astype(np.int64).T),
            header=stream.header,
            dropped=stream.malformed + int((~sound).sum()),
        )

    def _shape(self, name: str, args: Args) -> int:
        if not len(args.dims):
            return -1
        return self._shapes[bytes(args.dims), bytes(args.types), bytes(args.concrete) if "conv" in name else b""]

    def _name_lane(self, event: Event) -> None:
        if event.name == "thread_name" and event.args and event.args.name is not None:
            self._lane_names[Lane(event.pid, event.tid)] = str(event.args.name)


def _device(value: int | str) -> int:
    """A device's number, -1 where the field holds none."""
    return value if isinstance(value, int) and -1 <= value < 1 << 15 else -1
