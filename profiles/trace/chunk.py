"""Some of a file's events as columns, with names, threads and shapes numbered in the order of their appearance."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastvicreg.errors import visible
from fastvicreg.profiles.trace.entries import NOTHING, Args, Event, within_64_bits
from fastvicreg.profiles.trace.kinds import IGNORED, KINDS

_NO_ARGS = Args()
_FLOWS = frozenset("Xstf")

NUMBERED = {"category": np.int16, "name": np.int32, "lane": np.int32, "shape": np.int32, "collective": np.int32}
"""The columns that index a table of their chunk, -1 for none."""


class Chunk(NamedTuple):
    """``columns`` hold all timed events in the file's order; ``tables`` what the ``NUMBERED`` columns index.

    ``lane_names`` and ``process_names`` are by (pid, tid) and pid, ``memory`` holds moment, device, size and totals.
    """

    columns: dict[str, NDArray[Any]]
    tables: dict[str, list[Any]]
    lane_names: dict[tuple[int | str, int | str], str]
    process_names: dict[int | str, str]
    memory: list[tuple[float, int, int, int, int]]


class _Tables(msgspec.Struct):
    """The tables' types, which another process's answer is read by."""

    category: list[str | tuple[str | None, bool] | None]
    name: list[str]
    lane: list[tuple[int | str, int | str]]
    shape: list[tuple[bytes, bytes, bytes]]
    collective: list[tuple[str, int, int, str, int]]


class _Packed(msgspec.Struct, array_like=True):
    """A chunk as it goes from one process to another: arrays by their type and bytes."""

    columns: dict[str, tuple[str, bytes]]
    tables: _Tables
    lane_names: list[tuple[tuple[int | str, int | str], str]]
    process_names: list[tuple[int | str, str]]
    memory: list[tuple[float, int, int, int, int]]


_unpack = msgspec.msgpack.Decoder(_Packed)


def packed(chunk: Chunk) -> bytes:
    """``chunk`` as MessagePack: no pickle, for what it holds came with a file."""
    columns = {name: (values.dtype.str, values.tobytes()) for name, values in chunk.columns.items()}
    lanes, processes = list(chunk.lane_names.items()), list(chunk.process_names.items())
    return msgspec.msgpack.encode(_Packed(columns, _Tables(**chunk.tables), lanes, processes, chunk.memory))


def unpacked(content: bytes) -> Chunk:
    """What was packed; ``msgspec.MsgspecError`` for anything else."""
    found = _unpack.decode(content)
    columns = {name: np.frombuffer(values, np.dtype(kind)) for name, (kind, values) in found.columns.items()}
    tables = {name: getattr(found.tables, name) for name in NUMBERED}
    return Chunk(columns, tables, dict(found.lane_names), dict(found.process_names), found.memory)


class Intern(dict[Any, int]):
    """Numbers keys in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self)
        return number


class _Shapes(dict[bytes, int]):
    """By the texts' concatenation, which is faster to look up than the three texts are; ``numbers`` holds those."""

    def __init__(self) -> None:
        self.numbers = Intern()

    def __missing__(self, text: bytes) -> int:
        dims, types, concrete = (*text.split(b"\0", 2), b"")[:3]
        number = self[text] = self.numbers[dims, types, concrete]
        return number


class _Devices(dict[int | str, int]):
    """A device's number by its field's value, -1 where that is none."""

    def __missing__(self, value: int | str) -> int:
        number = self[value] = value if isinstance(value, int) and -1 <= value < 1 << 15 else -1
        return number


def chunk_of(events: list[Event]) -> Chunk:
    """The timed events, allocations and names of threads of a list of events."""
    timed = [event for event in events if event.ph == "X" and event.cat not in IGNORED]
    args_N = [event.args or _NO_ARGS for event in timed]
    count = len(timed)
    # One look-up for what most events have in common; the order in which each of the three appears is that of keys.
    keys = Intern()
    number, device = keys.__getitem__, _Devices().__getitem__
    key_N = np.fromiter([number((e.cat, e.pid, e.tid, e.name)) for e in timed], np.int32, count)
    names, lanes, categories, collectives, shapes = Intern(), Intern(), Intern(), Intern(), _Shapes()
    category_N = np.array([categories[key[0]] if key[0] in KINDS else -1 for key in keys], np.int16)[key_N]
    for place in np.flatnonzero(category_N < 0).tolist():
        category_N[place] = categories[_unknown(timed[place], args_N[place])]
    collective_N = np.full(count, -1, np.int32)
    if [args.collective for args in args_N].count(None) < count:
        collective_N[:] = [-1 if args.collective is None else collectives[_collective(args)] for args in args_N]
    external_N = _ids([args.external for args in args_N])
    if (external_N < 0).any():
        external_N = np.where(external_N >= 0, external_N, _ids([args.old_external for args in args_N]))
    columns = {
        "category": category_N,
        "name": np.array([names[key[3]] for key in keys], np.int32)[key_N],
        "lane": np.array([lanes[key[1:3]] for key in keys], np.int32)[key_N],
        "device": np.fromiter([device(args.device) for args in args_N], np.int16, count),
        "start": _times([event.ts for event in timed]),
        "length": _times([event.dur for event in timed]),
        "shape": _shapes(timed, args_N, shapes),
        "external": external_N,
        "correlation": _ids([args.correlation for args in args_N]),
        "bytes": _ids([args.bytes for args in args_N]),
        "collective": collective_N,
    }
    tables = {"category": categories, "name": names, "lane": lanes, "shape": shapes.numbers, "collective": collectives}
    return Chunk(columns, {name: list(table) for name, table in tables.items()}, *_untimed(events))


def _untimed(events: list[Event]) -> tuple[Any, Any, Any]:
    lane_names: dict[tuple[int | str, int | str], str] = {}
    process_names: dict[int | str, str] = {}
    memory: list[tuple[float, int, int, int, int]] = []
    if _FLOWS.issuperset({event.ph for event in events}):
        return lane_names, process_names, memory
    for event in events:
        if event.ph in _FLOWS or not (args := event.args):
            continue
        if event.ph == "M":
            if event.name == "thread_name" and args.name is not None:
                lane_names[event.pid, event.tid] = visible(str(args.name))
            elif event.name == "process_name" and args.name is not None:
                process_names[event.pid] = str(args.name)
        elif event.name == "[memory]" and event.ts is not None:
            device = _Devices()[args.device_id if args.device_type else -1]
            size, allocated, reserved = map(within_64_bits, (args.size or args.bytes, args.allocated, args.reserved))
            memory.append((event.ts, device, size, allocated, reserved))
    return lane_names, process_names, memory


def _shapes(timed: list[Event], args_N: list[Args], shapes: _Shapes) -> NDArray[np.int32]:
    """Of convolutions with the concrete inputs, which hold stride and padding."""
    number, joined = shapes.__getitem__, b"\0".join
    return np.array(
        [
            -1
            if args.dims is NOTHING
            else number(
                joined((args.dims, args.types, args.concrete) if "conv" in event.name else (args.dims, args.types))
            )
            for event, args in zip(timed, args_N, strict=True)
        ],
        np.int32,
    )


def _times(values: list[float | None]) -> NDArray[np.float64]:
    """NaN where there is none; ``fromiter`` is the fastest, but takes numbers alone."""
    try:
        return np.fromiter(values, np.float64, len(values))
    except TypeError:
        return np.array(values, np.float64)


def _ids(values: list[int]) -> NDArray[np.int64]:
    """Those beyond 64 bits become others that stand for them."""
    try:
        return np.fromiter(values, np.int64, len(values))
    except OverflowError:
        return np.fromiter(map(within_64_bits, values), np.int64, len(values))


def _collective(args: Args) -> tuple[str, int, int, str, int]:
    return str(args.collective), args.sent, args.received, args.dtype or "", args.group


def _unknown(event: Event, args: Args) -> tuple[str | None, bool]:
    """The key of a category that ``KINDS`` does not hold: with whether its event names a device or a stream."""
    return event.cat, args.stream != -1 or args.device != -1
