"""Sets of half-open time intervals as sorted arrays: union, nesting and division of the time by priority.

Shape suffixes: N intervals, M disjoint intervals, S segments, W windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
Ids = NDArray[np.int64]


class Spans(NamedTuple):
    """Disjoint intervals in order of time, in microseconds."""

    start_M: Times
    end_M: Times

    @property
    def total(self) -> float:
        """Length of all of them."""
        return float((self.end_M - self.start_M).sum())

    def covers(self, at_N: Times) -> NDArray[np.bool_]:
        """Which of the points lie inside."""
        return at_N < np.append(self.end_M, -np.inf)[last_begun(self.start_M, at_N)]


class Segments(NamedTuple):
    """Pieces of time in order, each with what it belongs to."""

    start_S: Times
    end_S: Times
    id_S: Ids

    def at(self, time_N: Times, default: int = -1) -> Ids:
        """The id of the segment that holds each point."""
        place_N = last_begun(self.start_S, time_N)
        inside_N = time_N < np.append(self.end_S, -np.inf)[place_N]
        return np.where(inside_N, np.append(self.id_S, default)[place_N], default)


EMPTY = Spans(np.empty(0), np.empty(0))


def last_begun(start_M: Times, at_N: Times) -> Ids:
    """Of each point the place of the last start at it or before it, -1 for none; the starts are in order.

    Fast where the points are in order too: the fewer are then looked for among the more.
    """
    if len(start_M) < len(at_N) and bool((at_N[1:] >= at_N[:-1]).all()):
        first_M = np.searchsorted(at_N, start_M)
        return np.repeat(np.arange(-1, len(start_M)), np.diff(first_M, prepend=0, append=len(at_N)))
    return np.searchsorted(start_M, at_N, side="right") - 1


def distinct(number_N: NDArray[np.integer[Any]]) -> Ids:
    """The different numbers in order; they number things, and so lie close together."""
    if not len(number_N):
        return np.empty(0, np.int64)
    least = int(number_N.min())
    return np.flatnonzero(np.bincount(number_N.astype(np.int64) - least)) + least


def moments(columns: Iterable[Times]) -> Times:
    """All moments in order, each once."""
    at = np.sort(np.concatenate([*columns]), kind="stable")  # made of runs that are in order
    return at[np.append(True, at[1:] > at[:-1])] if len(at) else at


def union(start_N: Times, end_N: Times) -> Spans:
    """What the intervals cover together; overlapping and touching ones become one, empty ones none."""
    kept_N = end_N > start_N
    start_N, end_N = start_N[kept_N], end_N[kept_N]
    if not len(start_N):
        return EMPTY
    order_N = np.argsort(start_N, kind="stable")
    start_N, end_N = start_N[order_N], end_N[order_N]
    reach_N = np.maximum.accumulate(end_N)
    opens_N = np.concatenate(([True], start_N[1:] > reach_N[:-1]))
    closes_N = np.concatenate((opens_N[1:], [True]))
    return Spans(start_N[opens_N], reach_N[closes_N])


def divide(layers: Sequence[Spans], windows: Spans) -> Segments:
    """The windows' time cut where any layer begins or ends; each piece belongs to the first layer that covers it.

    A piece that none covers has the id ``len(layers)``.
    """
    edges = moments(edge for spans in (*layers, windows) for edge in spans)
    start_S, end_S = edges[:-1], edges[1:]
    inside_S = windows.covers(start_S)
    start_S, end_S = start_S[inside_S], end_S[inside_S]
    id_S = np.full(len(start_S), len(layers), np.int64)
    for number in range(len(layers) - 1, -1, -1):
        id_S[layers[number].covers(start_S)] = number
    return Segments(start_S, end_S, id_S)


def select(segments: Segments, number: int) -> Spans:
    """The pieces that belong to ``number``, joined where they touch."""
    chosen_S = segments.id_S == number
    return union(segments.start_S[chosen_S], segments.end_S[chosen_S])


def per_window(segments: Segments, windows: Spans, count: int) -> NDArray[np.float64]:
    """(W, count) microseconds of each id in each window; the segments must not cross a window's edge."""
    window_S = last_begun(windows.start_M, segments.start_S)
    inside_S = segments.start_S < np.append(windows.end_M, -np.inf)[window_S]
    cell_S = window_S[inside_S] * count + segments.id_S[inside_S]
    length_S = (segments.end_S - segments.start_S)[inside_S]
    cells: Times = np.bincount(cell_S, length_S, len(windows.start_M) * count).astype(np.float64)
    return cells.reshape(len(windows.start_M), count)


def cut(segments: Segments, windows: Spans) -> Segments:
    """The segments' parts inside the windows, split at the windows' edges."""
    edges = moments((segments.start_S, segments.end_S, *windows))
    start_S, end_S = edges[:-1], edges[1:]
    id_S = segments.at(start_S)
    kept_S = windows.covers(start_S) & (id_S >= 0)
    return Segments(start_S[kept_S], end_S[kept_S], id_S[kept_S])


def outermost(start_N: Times, end_N: Times) -> NDArray[np.bool_]:
    """Which intervals no other one holds, in the sense of ``parents``; any order of input."""
    top_N = np.ones(len(start_N), bool)
    order = np.lexsort((-end_N, start_N))
    top_N[order[1:]] = start_N[order[1:]] >= np.maximum.accumulate(end_N[order])[:-1]
    return top_N


def parents(start_N: Times, end_N: Times) -> Ids:
    """The index of the innermost interval that holds each one, -1 for the outermost; any order of input.

    An interval that crosses its holder's end counts as held: clocks of nested ranges differ by rounding.
    """
    order = np.lexsort((-end_N, start_N))
    parent_N = np.full(len(start_N), -1, np.int64)
    found = [-1] * len(order)
    stack: list[int] = []
    ends: list[float] = []
    for place, (start, end) in enumerate(zip(start_N[order].tolist(), end_N[order].tolist(), strict=True)):
        while ends and ends[-1] <= start:
            ends.pop()
            stack.pop()
        if stack:
            found[place] = stack[-1]
        stack.append(place)
        ends.append(end)
    found_N = np.array(found, np.int64)
    parent_N[order] = np.where(found_N >= 0, order[found_N], -1) if len(order) else found_N
    return parent_N
