"""How events hold one another on their threads: parents, the innermost at a moment, time of their own.

Shape suffixes: N events of a trace, E events of a nest, T moments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.events import Trace
from fastvicreg.profiles.trace.intervals import Ids, Segments, Times, last_begun, moments, parents


class Nest:
    """Events of one kind, on all threads, by which of them lies in which; ``events_E`` is by thread and start.

    ``parent_E`` holds places in ``events_E``, -1 for the outermost.
    """

    def __init__(self, trace: Trace, events: Ids) -> None:
        start, end, lane = trace.start_N[events], trace.end_N[events], trace.lane_N[events].astype(np.int64)
        # Threads are laid out one after the other, so that one pass serves them all.
        self._span = float(trace.end_N.max()) + 1.0
        order = _order(start, end, lane)
        self.events_E = events[order]
        shift = lane[order] * self._span
        self._start_E, self._end_E = start[order] + shift, end[order] + shift
        self._length_E = (end - start)[order]
        self.parent_E = _parents(self._start_E, self._end_E)

    def at(self, lane_T: NDArray[np.int64], time_T: Times) -> Ids:
        """The place of the innermost event that runs at each moment on each thread; -1 where none does."""
        if not len(self.events_E):
            return np.full(len(time_T), -1, np.int64)
        # Nothing runs after the last event's end; later moments must not reach the next thread.
        at_T = np.asarray(np.minimum(time_T, self._span - 0.5) + lane_T * self._span, np.float64)
        place_T = last_begun(self._start_E, at_T)
        while True:
            over = np.flatnonzero((place_T >= 0) & (self._end_E[place_T] <= at_T))
            if not len(over):
                break
            place_T[over] = self.parent_E[place_T[over]]
        return place_T

    def segments(self, lane: int) -> Segments:
        """The time of one thread that its events cover, each piece with the place of the innermost one."""
        base = lane * self._span
        first, last = np.searchsorted(self._start_E, (base, base + self._span))
        edges = moments((self._start_E[first:last], self._end_E[first:last])) - base
        if not len(edges):
            return Segments(np.empty(0), np.empty(0), np.empty(0, np.int64))
        place = self.at(np.full(len(edges) - 1, lane, np.int64), edges[:-1])
        held = place >= 0
        return Segments(edges[:-1][held], edges[1:][held], place[held])

    def own_times(self) -> Times:
        """Microseconds of each event without those that it holds."""
        held = self.parent_E >= 0
        inner = np.bincount(self.parent_E[held], self._length_E[held], len(self.parent_E))
        return np.maximum(self._length_E - inner, 0.0)


def _order(start_E: Times, end_E: Times, lane_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """By thread and start, the longest first; fast where they are in order of start, as a trace's events are."""
    by_lane = np.argsort(lane_E.astype(np.int16) if lane_E.max(initial=0) < 1 << 15 else lane_E, kind="stable")
    start, end, lane = start_E[by_lane], end_E[by_lane], lane_E[by_lane]
    late = (start[1:] > start[:-1]) | ((start[1:] == start[:-1]) & (end[1:] <= end[:-1]))
    return by_lane if bool((late | (lane[1:] > lane[:-1])).all()) else np.lexsort((-end_E, start_E, lane_E))


def _parents(start_E: Times, end_E: Times) -> Ids:
    """As ``intervals.parents``, of intervals in order of start, longest first; fast where they nest properly."""
    parent_E = np.full(len(start_E), -1, np.int64)
    real = np.flatnonzero(end_E > start_E)
    start, end = start_E[real], end_E[real]
    # As many hold an interval as began before it and have not ended when it begins.
    depth = np.arange(len(real)) - np.searchsorted(np.sort(end), start, side="right")
    found = np.full(len(real), -1, np.int64)
    above = np.flatnonzero(depth == 0)
    for level in range(1, int(depth.max(initial=0)) + 1):
        here = np.flatnonzero(depth == level)
        found[here] = above[np.searchsorted(above, here) - 1] if len(above) else -1
        above = here
    if (end > end[found])[found >= 0].any():
        return parents(start_E, end_E)
    parent_E[real] = np.where(found >= 0, real[found], -1) if len(real) else found
    empty = np.flatnonzero(end_E <= start_E)
    if len(empty) and len(real):
        place = np.searchsorted(start, start_E[empty], side="right") - 1
        while True:
            over = np.flatnonzero((place >= 0) & (end[place] <= start_E[empty]))
            if not len(over):
                break
            place[over] = found[place[over]]
        parent_E[empty] = np.where(place >= 0, real[place], -1)
    return parent_E
