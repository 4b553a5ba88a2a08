"""Interval sets against the same answers found point by point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from traces import TraceWriter

from fastvicreg.profiles.trace.events import Kind, Trace, read_trace
from fastvicreg.profiles.trace.intervals import (
    Spans,
    cut,
    distinct,
    divide,
    last_begun,
    moments,
    outermost,
    parents,
    per_window,
    union,
)
from fastvicreg.profiles.trace.nest import Nest

RANGE = 60
CELLS = np.arange(RANGE, dtype=np.float64) + 0.5


def drawn(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Intervals with whole edges, some empty, many that touch or overlap."""
    generator = np.random.default_rng(seed)
    start = generator.integers(0, RANGE, count).astype(float)
    return start, np.minimum(start + generator.integers(0, 9, count), RANGE)


def covered(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Which of the unit cells 0..RANGE lie in any interval."""
    return np.any((start[:, None] <= CELLS) & (end[:, None] > CELLS), axis=0)


@pytest.mark.parametrize("seed", range(20))
def test_a_union_covers_what_its_intervals_cover(seed: int) -> None:
    start, end = drawn(seed, seed)
    spans = union(start, end)
    assert (covered(*spans) == covered(start, end)).all()
    assert (spans.start_M[1:] > spans.end_M[:-1]).all()
    assert spans.total == covered(start, end).sum()
    assert (spans.covers(CELLS) == covered(start, end)).all()


@pytest.mark.parametrize("seed", range(20))
def test_time_goes_to_the_first_layer_that_covers_it(seed: int) -> None:
    layers = [union(*drawn(seed * 10 + i, 4)) for i in range(3)]
    windows = Spans(np.array([3.0, 20.0, 41.0]), np.array([20.0, 35.0, 58.0]))
    segments = divide(layers, windows)
    expected = np.full(RANGE, 3)
    for number in (2, 1, 0):
        expected[covered(*layers[number])] = number
    inside = windows.covers(CELLS)
    assert (segments.at(CELLS)[inside] == expected[inside]).all()
    assert (segments.at(CELLS)[~inside] == -1).all()
    table = per_window(segments, windows, 4)
    for window, (low, high) in enumerate(zip(*windows, strict=True)):
        here = windows.covers(CELLS) & (np.abs(CELLS - (low + high) / 2) < (high - low) / 2)
        assert table[window].tolist() == np.bincount(expected[here], minlength=4).tolist()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("nested", [True, False])
def test_the_innermost_event_of_a_thread_owns_the_time(seed: int, nested: bool, tmp_path: Path) -> None:
    writer = TraceWriter()
    generator = np.random.default_rng(seed)
    for tid in (1, 2):
        for start, length in generator.integers(0, 40, (12, 2)).tolist():
            stop = (start + length // 4) // 8 * 8 if nested else start + length
            writer.op(f"{start} {length} {tid}", start, stop - start, tid)
    writer.events = [event for event in writer.events if event["dur"] >= 0]
    trace = read_trace(writer.write(tmp_path / "a.json"))
    events = trace.where(Kind.OP)
    nest = Nest(trace, events)
    assert nest.parent_E.tolist() == _parents(trace, nest)
    for lane in range(2):
        own = events[trace.lane_N[events] == lane]
        segments, start, end = nest.segments(lane), trace.start_N[own], trace.end_N[own]
        for cell in CELLS:
            holding = np.flatnonzero((start <= cell) & (cell < end))
            (place,) = nest.at(np.array([lane]), np.array([cell])).tolist()
            assert segments.at(np.array([cell])).tolist() == [place]
            assert (place >= 0) == bool(len(holding))
            if len(holding):
                assert trace.start_N[nest.events_E[place]] == start[holding].max()
    windows = union(np.array([5.0, 30.0]), np.array([17.0, 44.0]))
    pieces = cut(nest.segments(0), windows)
    inside = windows.covers(CELLS)
    assert (pieces.at(CELLS)[inside] == nest.segments(0).at(CELLS)[inside]).all()


def _parents(trace: Trace, nest: Nest) -> list[int]:
    found = np.full(len(nest.events_E), -1)
    for lane in range(2):
        own = np.flatnonzero(trace.lane_N[nest.events_E] == lane)
        inner = parents(trace.start_N[nest.events_E[own]], trace.end_N[nest.events_E[own]])
        found[own] = np.where(inner >= 0, own[inner], -1)
    return found.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_the_outermost_are_those_without_parents(seed: int) -> None:
    start, end = drawn(seed, 8)
    assert outermost(start, end).tolist() == (parents(start, end) < 0).tolist()


def test_parents_are_the_innermost_holders_in_any_order() -> None:
    start = np.array([4.0, 0.0, 5.0, 12.0, 0.0, 20.0])
    end = np.array([9.0, 10.0, 6.0, 14.0, 15.0, 21.0])
    assert parents(start, end).tolist() == [1, 4, 0, 4, -1, -1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ordered", [True, False])
def test_the_last_start_before_each_point_is_found_in_any_order_of_points(seed: int, ordered: bool) -> None:
    generator = np.random.default_rng(seed)
    starts = np.sort(generator.integers(0, RANGE, seed % 9).astype(float))
    points = generator.integers(0, RANGE, 3 * (seed % 11)).astype(float)
    points = np.sort(points) if ordered else points
    expected = [int((starts <= point).sum()) - 1 for point in points.tolist()]
    assert last_begun(starts, points).tolist() == expected


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_distinct_numbers_and_moments_are_in_order(dtype: type) -> None:
    for numbers in ([], [5], [7, -1, 7, 0, 3], [120, -1]):
        assert distinct(np.array(numbers, dtype)).tolist() == sorted(set(numbers))
        halves = np.array(numbers, float)
        assert moments((halves, halves[::-1])).tolist() == sorted(set(numbers))
    widest = np.iinfo(np.int16)
    assert distinct(np.array([widest.max, widest.min], np.int16)).tolist() == [widest.min, widest.max]


def test_nothing_has_no_parts() -> None:
    none = np.empty(0)
    assert union(none, none).total == 0
    assert len(parents(none, none)) == len(outermost(none, none)) == 0
    window = Spans(np.array([1.0]), np.array([3.0]))
    assert per_window(divide([union(none, none)], window), window, 2).tolist() == [[0.0, 2.0]]
