"""Memory of a trace over time, by device: what was allocated and what was reserved, and the peaks.

Shape suffix: N changes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.events import Trace
from fastvicreg.profiles.trace.intervals import Times, distinct


class Use(NamedTuple):
    """Bytes from each moment (microseconds) to the next; ``reserved_N`` is None where it was not written.

    Without written totals ``allocated_N`` counts from where the log began or fell to.
    """

    at_N: Times
    allocated_N: NDArray[np.int64]
    reserved_N: NDArray[np.int64] | None

    @property
    def peak(self) -> int:
        """The most bytes allocated at once."""
        return int(self.allocated_N.max())

    def between(self, start: float, end: float) -> Use:
        """What held at ``start``, and the changes before ``end``."""
        first, last = max(int(np.searchsorted(self.at_N, start, "right")) - 1, 0), np.searchsorted(self.at_N, end)
        reserved_N = None if self.reserved_N is None else self.reserved_N[first:last]
        return Use(np.maximum(self.at_N[first:last], start), self.allocated_N[first:last], reserved_N)

    def thinned(self, count: int) -> Use:
        """At most ``count`` changes, about: of each stretch of time the lowest and the highest."""
        if len(self.at_N) <= count:
            return self
        edges = np.linspace(self.at_N[0], self.at_N[-1], max(count // 2, 1), endpoint=False)
        stretch_N = np.searchsorted(edges, self.at_N, side="right")
        order = np.lexsort((self.allocated_N, stretch_N))
        last = np.append(np.flatnonzero(np.diff(stretch_N[order])), len(order) - 1)
        first = np.append(0, last[:-1] + 1)
        kept = np.unique(order[np.concatenate((first, last))])
        reserved_N = None if self.reserved_N is None else self.reserved_N[kept]
        return Use(self.at_N[kept], self.allocated_N[kept], reserved_N)


def memory_use(trace: Trace) -> dict[str, Use]:
    """By device ("host", "device 0"); what was allocated before the trace counts where totals were written."""
    memory, found = trace.memory, {}
    for device in distinct(memory.device_N).tolist():
        own = np.flatnonzero(memory.device_N == device)
        own = own[np.argsort(memory.at_N[own], kind="stable")]
        allocated_N, reserved_N = memory.allocated_N[own], memory.reserved_N[own]
        if (allocated_N > 0).any():
            allocated_N = _filled(allocated_N)
        else:
            own = np.append(own[0], own)  # the level before the first change
            allocated_N = np.append(0, np.cumsum(memory.bytes_N[own[1:]]))
            allocated_N -= allocated_N.min()
            reserved_N = memory.reserved_N[own]
        found["host" if device < 0 else f"device {device}"] = Use(
            memory.at_N[own], allocated_N, _filled(reserved_N) if (reserved_N > 0).any() else None
        )
    return found


def _filled(total_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """With the total before in place of each one that was not written (-1)."""
    place_N = np.maximum.accumulate(np.where(total_N >= 0, np.arange(len(total_N)), -1))
    return np.where(place_N >= 0, total_N[place_N], 0)
