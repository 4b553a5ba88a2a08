"""A verdict depends on what happened, not on how it is written down; no broken file ends in a traceback."""

from __future__ import annotations

import copy
import gzip
import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from traces import AUTOGRAD, STEP, TraceWriter, device_trace, loop

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace.diff import compare
from fastvicreg.profiles.trace.events import read_trace
from fastvicreg.profiles.trace.page import page
from fastvicreg.profiles.trace.summary import Summary, summarize

FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def _blocking() -> TraceWriter:
    writer, starts = loop()
    for at in starts:
        writer.op("aten::item", at + 220, 700)
        writer.call("cudaStreamSynchronize", at + 225, 690)
        writer.op("aten::mul", at + 930, 20, tid=AUTOGRAD)
        writer.launch("mul", (at + 935, 4), (at + 940, 20), tid=AUTOGRAD)
    return writer


def _host() -> TraceWriter:
    writer = TraceWriter()
    for number in range(3):
        writer.step(number, STEP * number, STEP)
        writer.op("aten::mm", STEP * number, 300)
        writer.op("aten::mul", STEP * number + 200, 300, tid=AUTOGRAD)
        writer.mark("load_batch", STEP * number + 600, 300)
    return writer


WRITERS = {"data": device_trace, "sync": _blocking, "host": _host}


def figures(writer: TraceWriter, folder: Path) -> dict[str, Any]:
    """All figures but those of the file's name; shares rounded, as clocks are."""
    row = summarize(read_trace(writer.write(folder / "trace.json"))).row()
    return json.loads(json.dumps(row | {"file": ""}), parse_float=lambda text: round(float(text), 6))


@pytest.mark.parametrize("kind", WRITERS)
@given(seed=st.integers(0, 2**32), shift=st.integers(0, 10**15), ids=st.integers(1, 10**9), pid=st.integers(1, 10**6))
@settings(max_examples=12, deadline=None)
def test_order_clocks_ids_and_threads_names_change_nothing(
    kind: str, seed: int, shift: int, ids: int, pid: int
) -> None:
    writer = WRITERS[kind]()
    changed = copy.deepcopy(writer)
    lanes = {lane: f"thread {ids + number}" for number, lane in enumerate((101, AUTOGRAD))}
    for event in changed.events:
        event["ts"] += shift
        if event["pid"] == 100:
            event |= {"pid": pid, "tid": lanes[event["tid"]]}
        args = event.get("args", {})
        for key in ("correlation", "External id"):
            if args.get(key):
                args[key] += ids
    Random(seed).shuffle(changed.events)
    with tempfile.TemporaryDirectory() as folder:
        expected, found = figures(writer, Path(folder)), figures(changed, Path(folder))
    for row in (expected, found):
        for thread in row["threads"]:
            thread["name"] = thread["name"].rsplit(" ", 1)[-1].rstrip("0123456789")
    assert found == expected


def _kernels(seed: int, count: int) -> TraceWriter:
    """Steps of ``count`` kernels of different lengths that vary by half a percent from step to step."""
    random, writer, at = Random(seed), TraceWriter(), 0.0
    length = [random.uniform(20, 200) for _ in range(count)]
    for number in range(6):
        us = [one * random.uniform(0.995, 1.005) for one in length]
        whole = sum(us) + 10 * count + 50
        writer.step(number, at, whole)
        start = at + 20
        for kernel, one in enumerate(us):
            writer.op(f"aten::op{kernel}", start - 8, 7)
            writer.launch(f"kernel_{chr(97 + kernel)}", (start - 7, 5), (start, one))
            start += one + 10
        at += whole
    return writer


@given(seed=st.integers(0, 2**32), count=st.integers(2, 8), which=st.integers(0, 7), order=st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_a_diff_names_the_kernel_that_is_6_percent_slower_and_nothing_else(
    seed: int, count: int, which: int, order: int
) -> None:
    writer, name = _kernels(seed, count), f"kernel_{chr(97 + which % count)}"
    slower = copy.deepcopy(writer)
    for event in slower.events:
        if event["name"] == name:
            event["dur"] *= 1.06
    Random(order).shuffle(slower.events)
    with tempfile.TemporaryDirectory() as folder:
        a, b = (summarize(read_trace(one.write(Path(folder) / f"{n}.json"))) for n, one in enumerate((writer, slower)))
    itself, found = compare(a, a), compare(a, b)
    assert itself.text.startswith("No difference")
    assert not any(change.differs for change in itself.changes)
    assert [change.name for change in found.changes if change.kind == "kernel" and change.differs] == [name]
    assert f"kernel {name} moved most" in found.text
    assert "(+6%)" in found.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *("ProfilerStep#1", "ProfilerStep#2", "aten::mm", "gemm", "ncclDevKernel_AllReduce", "cudaLaunchKernel"),
        *("cudaMemcpyAsync", "Memcpy DtoH (Device -> Pageable)", "data_loading", "fv.data_wait", "fv.forward", "x"),
        *("autograd::engine::evaluate_function: A", "cudaFree", "gloo:all_reduce", "[memory]", "Iteration"),
    ]
)
CATEGORIES = st.sampled_from(
    [
        *(
            "cpu_op",
            "user_annotation",
            "kernel",
            "gpu_memcpy",
            "cuda_runtime",
            "python_function",
            "Operator",
            "overhead",
        ),
        *("gpu_memset", "mtia_ccp_events", "new", None),
    ]
)
TIMES = st.integers(0, 300) | st.floats(0, 300)
ARGS = st.fixed_dictionaries(
    {},
    optional={
        "correlation": st.integers(-1, 6) | JSON,
        "External id": st.integers(-1, 6) | JSON,
        "device": st.integers(-1, 2) | JSON,
        "stream": st.integers(-1, 3) | JSON,
        "Input Dims": JSON | st.just([[4, 5], [5, 6]]),
        "Input type": JSON | st.just(["float", "float"]),
        "Collective name": st.text(max_size=4) | JSON,
        "In msg nelems": JSON,
        "dtype": JSON,
        "Total Allocated": JSON,
        "Bytes": JSON,
        "name": JSON,
    },
)
EVENTS = st.fixed_dictionaries(
    {
        "ph": st.sampled_from(["X", "X", "X", "X", "M", "i", "s"]),
        "cat": CATEGORIES,
        "name": NAMES | st.text(max_size=6),
        "ts": TIMES | JSON,
        "dur": TIMES | JSON,
        "pid": st.integers(0, 2) | JSON,
        "tid": st.integers(0, 2) | JSON,
        "args": ARGS | JSON,
    }
)


def _survives(text: bytes) -> Summary | None:
    """Reading and summing up ends in a summary or in one clear line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        path.write_bytes(text)
        try:
            found = summarize(read_trace(path))
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return None
    json.dumps(found.row())
    return found


@pytest.mark.slow
@given(events=st.lists(EVENTS, max_size=14), header=st.dictionaries(st.text(max_size=5), JSON, max_size=2))
@FUZZ
def test_any_events_are_summed_up_or_refused_in_one_line(events: list[Any], header: dict[str, Any]) -> None:
    known = {"deviceProperties": header.get("a"), "distributedInfo": header.get("b")}
    found = _survives(json.dumps({**header, **known, "traceEvents": events}).encode("utf-8", "replace"))
    if found:
        assert page([found]).startswith("<!doctype html>")
        shares = found.device_shares or (found.host.shares if found.host else {})
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)


@given(place=st.floats(0, 1), cut=st.integers(0, 40), filling=st.binary(max_size=20), packed=st.booleans())
@FUZZ
def test_a_file_that_is_damaged_anywhere_is_summed_up_or_refused_in_one_line(
    place: float, cut: int, filling: bytes, packed: bool
) -> None:
    whole = json.dumps({"traceEvents": device_trace(2).events}).encode()
    whole = gzip.compress(whole, mtime=0) if packed else whole
    at = int(place * len(whole))
    _survives(whole[:at] + filling + whole[at + cut :])
