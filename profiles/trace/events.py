"""A trace in memory: every timed event as columns, names and shapes interned, whichever version wrote it.

Shape suffix: N events.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.errors import visible
from fastvicreg.profiles.trace.decode import Stream
from fastvicreg.profiles.trace.intervals import distinct
from fastvicreg.profiles.trace.kinds import ON_DEVICE, Kind

__all__ = ["ON_DEVICE", "Kind", "Lane", "Memory", "Trace", "read_trace"]

log = logging.getLogger(__name__)

_RANK = re.compile(r"rank[-_]?(\d+)", re.IGNORECASE)


class Lane(NamedTuple):
    """A host thread or a device stream, as the file names it."""

    pid: int | str
    tid: int | str


class Collective(NamedTuple):
    """What a kernel of communication says of itself."""

    name: str
    sent: int
    received: int
    dtype: str
    group: int


@dataclass(frozen=True)
class Memory:
    """The allocator's log: ``device_N`` is -1 for the host; totals are -1 where they were not written."""

    at_N: NDArray[np.float64]
    device_N: NDArray[np.int64]
    bytes_N: NDArray[np.int64]
    allocated_N: NDArray[np.int64]
    reserved_N: NDArray[np.int64]


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
    collective_N: NDArray[np.int32]
    collectives: list[Collective]
    memory: Memory
    header: dict[str, Any]
    dropped: int
    """Events left out: malformed, of negative length, or without a finite time."""
    faults: tuple[str, ...]
    """What was wrong with the file, and what was done about it."""
    foreign: dict[str, int]
    """Categories that are not known, with their events: left out, or taken for a device's work."""

    def where(self, *kinds: Kind) -> NDArray[np.int64]:
        """Indices of the events of these kinds."""
        found_N = self.kind_N == kinds[0]
        for kind in kinds[1:]:
            found_N |= self.kind_N == kind
        return np.flatnonzero(found_N)

    def named(self, indices: NDArray[np.int64], pattern: re.Pattern[str]) -> NDArray[np.bool_]:
        """Which of these events' names ``pattern`` finds; each distinct name is tried once."""
        name = self.name_N[indices]
        hits = np.zeros(len(self.names), bool)
        for number in distinct(name).tolist():
            hits[number] = pattern.search(self.names[number]) is not None
        return hits[name]

    @property
    def device_name(self) -> str | None:
        """Of the first device that the header lists and a kernel ran on; of all listed where they are alike."""
        properties = self.header.get("deviceProperties")
        listed = [one for one in properties if isinstance(one, dict)] if isinstance(properties, list) else []
        used = set(self.device_N[self.where(*ON_DEVICE)].tolist())
        names = [str(one["name"]) for one in listed if one.get("id") in used and one.get("name")]
        every = {str(one["name"]) for one in listed if one.get("name")}
        return visible(names[0]) if names else visible(every.pop()) if used and len(every) == 1 else None

    @property
    def rank(self) -> int | None:
        """From the header, else from the file's name."""
        info = self.header.get("distributedInfo")
        if isinstance(info, dict) and str(info.get("rank")).isdecimal():
            return int(info["rank"])
        found = _RANK.search(self.path.name)
        return int(found.group(1)) if found else None


def read_trace(path: str | Path) -> Trace:
    """Read one file of torch.profiler, of any version.

    ``UserError`` where it cannot be read, is damaged, is no trace, or holds no timed event.
    """
    from fastvicreg.profiles.trace.chunk import chunk_of
    from fastvicreg.profiles.trace.columns import Columns
    from fastvicreg.profiles.trace.entries import OddError
    from fastvicreg.profiles.trace.parallel import chunks, workers_for

    columns: Any
    if count := workers_for(Path(path)):
        stream, columns = Stream(Path(path)), Columns()
        try:
            for chunk in chunks(stream, count):
                columns.add(chunk)
            return columns.trace(stream)
        except OddError:
            # From the start again, which tells what is odd and mends it.
            log.info(
                "%s: not read by %d processes, since a piece of it is no plain JSON or one of them ended", path, count
            )
    stream, columns = Stream(Path(path)), Columns()
    for events in stream.chunks():
        columns.add(chunk_of(events))
    return columns.trace(stream)
