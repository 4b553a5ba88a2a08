"""Several processes read a file to the same arrays, names and numbers as one; where they cannot, one reads it."""

from __future__ import annotations

import dataclasses
import gzip
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from traces import TraceWriter, device_trace, written

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace import blocks, decode, parallel
from fastvicreg.profiles.trace.chunk import Chunk, chunk_of
from fastvicreg.profiles.trace.decode import Stream
from fastvicreg.profiles.trace.entries import OddError
from fastvicreg.profiles.trace.events import Trace, read_trace

PIECE = 1 << 14


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small file has many."""
    monkeypatch.setattr(blocks, "BLOCK", PIECE // 4)
    monkeypatch.setattr(decode, "PIECE", PIECE)


@pytest.fixture
def read_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], tuple[Trace, int]]:
    """Reads a file with so many workers; returns how many chunks they decoded, too."""
    taken: list[Chunk] = []

    def counted(stream: Stream, count: int) -> Iterator[Chunk]:
        for chunk in chunks(stream, count):
            taken.append(chunk)
            yield chunk

    def read(path: Path, count: int) -> tuple[Trace, int]:
        taken.clear()
        monkeypatch.setattr(parallel, "workers_for", lambda _: count)
        return read_trace(path), len(taken)

    chunks = parallel.chunks
    monkeypatch.setattr(parallel, "chunks", counted)
    return read


def rich_trace(steps: int = 60) -> TraceWriter:
    """Names, threads, shapes, categories and devices that appear first in different pieces; memory, names of lanes."""
    writer = device_trace(steps)
    for number in range(steps):
        at = 10_000.0 + 1000 * number
        dims = {"Input Dims": [[number // 9, 3]], "Input type": ["float"], "Concrete Inputs": [str(number // 4)]}
        writer.op(f"aten::{'conv' if number % 2 else 'mm'}{number // 7}", at + 700, 5, 103 + number // 20, **dims)
        writer.add(f"engine{number // 25}", "work", at, 9, 3, 1, stream=number % 2 - 1)
        writer.launch(f"k{number % 11}", (at + 5, 2), (at + 9, 4), device=number // 30, stream=7 + number % 3)
        writer.memory(at, 512, 512 * number, device=number % 2 - 1)
        lane = {"pid": 100, "tid": 103 + number // 20, "args": {"name": f"thread {number // 10}"}}
        writer.events.append({"ph": "M", "name": "thread_name", **lane})
        sums = {"Collective name": f"sum{number // 15}", "In msg nelems": number // 8, "dtype": "Float"}
        writer.add("kernel", "ncclDevKernel", at + 20, 5, 20, 0, device=0, **sums)
    writer.events.append({"ph": "X", "name": "bare", "pid": 5, "tid": 5, "ts": 10_500, "dur": 3})
    writer.events.append({"ph": "M", "name": "process_name", "pid": 5, "args": {"name": "CANN"}})
    return writer


def assert_same(found: Trace, expected: Trace) -> None:
    """Field by field, order and types included."""
    for field in dataclasses.fields(Trace):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            assert np.array_equal(one, other), field.name
        elif field.name == "memory":
            for part in dataclasses.fields(one):
                assert np.array_equal(getattr(one, part.name), getattr(other, part.name)), part.name
        elif isinstance(one, dict):
            assert list(one.items()) == list(other.items()), field.name
        else:
            assert one == other, field.name


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("form", ["document", "bare", "pretty", "header behind", "gz", "cut off", "two members"])
def test_any_number_of_workers_reads_what_one_process_reads(
    count: int, form: str, tmp_path: Path, read_with: Callable[[Path, int], tuple[Trace, int]]
) -> None:
    path = tmp_path / ("trace.json.gz" if form in ("gz", "two members") else "trace.json")
    writer = rich_trace()
    if form == "header behind":
        text = writer.write(path).read_text().removeprefix("{")
        at = text.index('"traceEvents"')
        written(path, f'{{{text[at:-1]}, {text[:at]} "more": [{{}}, {{"a": [{{}}]}}]}}'.encode())
    else:
        writer.write(path, bare=form == "bare", indent=2 if form == "pretty" else None)
    if form == "cut off":
        written(path, path.read_bytes()[:-3000])
    if form == "two members":
        text = gzip.decompress(path.read_bytes())
        written(path, gzip.compress(text[:99_999]) + gzip.compress(text[99_999:]))
    expected, alone = read_with(path, 0)
    found, taken = read_with(path, count)
    assert alone == 0
    assert taken > 5
    assert_same(found, expected)
    assert len(found.faults) == (form == "cut off")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"aten::mm2"', r'"C:\Users\train.py"'),
        ('"aten::mm2"', '"say "aten::mm" aloud"'),
        ('"aten::mm2"', '"\\ud800"'),
        ('"dur": 300.0', '"dur": "300.0"'),
        ('"dur": 300.0', '"dur": NaN'),
        ('"device": 0', f'"device": 0, "x": "{"}, {" * PIECE}"'),
    ],
    ids=["windows path", "quotes", "half a character", "text for a number", "no number", "a name like a cut"],
)
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_a_piece_that_is_no_plain_json_is_left_to_one_process(
    old: str, new: str, last: bool, tmp_path: Path, read_with: Callable[[Path, int], tuple[Trace, int]]
) -> None:
    path = rich_trace().write(tmp_path / "trace.json")
    text = path.read_text()
    assert old in text
    odd = new.join(text.rsplit(old, 1)) if last else text.replace(old, new, 1)
    written(path, odd.encode("utf-8", "surrogatepass"))
    expected, _ = read_with(path, 0)
    found, _ = read_with(path, 2)
    assert_same(found, expected)
    with pytest.raises(OddError):
        list(parallel.chunks(Stream(path), 2))


@pytest.mark.parametrize("content", [b"{}", b"", b"[[", b'{"traceEvents": [{"ph"', b"\x1f\x8b\x08\x00broken"])
def test_what_is_no_trace_is_the_same_line(
    content: bytes, tmp_path: Path, read_with: Callable[[Path, int], tuple[Trace, int]]
) -> None:
    path = written(tmp_path / "trace.json", content)
    with pytest.raises(UserError) as expected:
        read_with(path, 0)
    with pytest.raises(UserError) as found:
        read_with(path, 2)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_no_worker_outlives_its_reader(taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers, start, threads = [], parallel.start_worker, threading.active_count()

    def started() -> object:
        workers.append(start())
        return workers[-1]

    monkeypatch.setattr(parallel, "start_worker", started)
    chunks = parallel.chunks(Stream(rich_trace().write(tmp_path / "trace.json")), 2)
    for _ in range(taken):
        next(chunks)
    chunks.close()  # as an error or Ctrl-C in whoever takes the chunks does
    assert len(workers) == 2 * bool(taken)
    assert all(worker.returncode is not None for worker in workers)
    assert threading.active_count() == threads


def test_a_worker_that_dies_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_with: Callable[[Path, int], tuple[Trace, int]]
) -> None:
    path = rich_trace().write(tmp_path / "trace.json")
    expected, _ = read_with(path, 0)
    monkeypatch.setattr(parallel, "WORKER", "import sys; sys.stdin.buffer.read(9)")
    found, taken = read_with(path, 2)
    assert taken == 0
    assert_same(found, expected)
    monkeypatch.setattr(parallel.sys, "executable", str(tmp_path / "absent"))
    assert_same(read_with(path, 2)[0], expected)


def test_small_files_and_single_cores_have_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = device_trace().write(tmp_path / "trace.json")
    packed = device_trace().write(tmp_path / "trace.json.gz")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(99)), raising=False)
    assert parallel.workers_for(path) == parallel.workers_for(tmp_path / "absent") == 0
    monkeypatch.setattr(parallel, "LEAST", path.stat().st_size)
    assert parallel.workers_for(path) == parallel.MOST
    monkeypatch.setattr(parallel, "LEAST", parallel.PACKED * packed.stat().st_size)
    assert parallel.workers_for(packed) == parallel.MOST
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert parallel.workers_for(packed) == 0


def test_a_chunk_numbers_what_it_holds_by_appearance(tmp_path: Path) -> None:
    path = rich_trace(3).write(tmp_path / "trace.json")
    events = [event for part in Stream(path).chunks() for event in part]
    chunk = chunk_of(events)
    timed = [event for event in events if event.ph == "X"]
    assert chunk.tables["name"] == list(dict.fromkeys(event.name for event in timed))
    assert [chunk.tables["name"][i] for i in chunk.columns["name"]] == [event.name for event in timed]
    assert [chunk.tables["lane"][i] for i in chunk.columns["lane"]] == [(event.pid, event.tid) for event in timed]
    assert chunk.columns["start"].tolist() == [event.ts for event in timed]
