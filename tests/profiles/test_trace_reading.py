"""Whatever a profiler of any version wrote is read alike, in pieces of any size; what is no trace is one clear line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from traces import TraceWriter, device_trace

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace import decode
from fastvicreg.profiles.trace.events import Kind, Trace, read_trace
from fastvicreg.profiles.trace.files import trace_files
from fastvicreg.profiles.trace.summary import summarize


def content(trace: Trace) -> list[tuple]:
    """The events as plain values."""
    return [
        (trace.kind_N[i], trace.names[trace.name_N[i]], trace.start_N[i], trace.end_N[i], trace.external_N[i])
        for i in range(len(trace.kind_N))
    ]


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("bare", [False, True], ids=["document", "bare"])
@pytest.mark.parametrize("indent", [None, 2], ids=["one line", "pretty"])
@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_every_format_gives_the_same_figures(
    old: bool, bare: bool, indent: int | None, ending: str, tmp_path: Path
) -> None:
    expected = read_trace(device_trace().write(tmp_path / "expected.json"))
    found = read_trace(device_trace().write(tmp_path / f"found{ending}", old=old, bare=bare, indent=indent))
    assert content(found) == content(expected)
    assert found.dropped == 0
    figures = summarize(found).row()
    assert figures["device"] == summarize(expected).row()["device"]
    assert figures["idle_by"] == summarize(expected).row()["idle_by"]
    assert found.device_name == (None if bare else "NVIDIA A100-SXM4-80GB")


@pytest.mark.parametrize("block", [1, 7, 64, 301, 5000])
@pytest.mark.parametrize("indent", [None, 1])
def test_pieces_of_any_size_hold_the_same_events(
    block: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = device_trace(steps=2 if block < 10 else 30)
    writer.op(
        'tricky }, {"name": "x"} \\', 20, 5, **{"Concrete Inputs": [{"a": [{}, {}]}, "], }, {"], "External id": 1}
    )
    writer.header["after"] = [{"id": 0}, {"id": 1}]
    text = json.dumps({"traceEvents": writer.events, **writer.header}, indent=indent)  # the header stands behind
    path = tmp_path / "trace.json"
    path.write_text(text)
    whole = read_trace(path)
    monkeypatch.setattr(decode, "BLOCK", block)
    pieces = read_trace(path)
    assert content(pieces) == content(whole)
    assert len(pieces.kind_N) == sum(event["ph"] == "X" for event in writer.events)
    assert pieces.header["after"] == [{"id": 0}, {"id": 1}]
    assert pieces.device_name == "NVIDIA A100-SXM4-80GB"


def test_unordered_events_are_put_in_order(tmp_path: Path) -> None:
    writer = device_trace()
    expected = summarize(read_trace(writer.write(tmp_path / "a.json"))).row()
    np.random.default_rng(0).shuffle(writer.events)  # type: ignore[arg-type]
    found = summarize(read_trace(writer.write(tmp_path / "b.json"))).row()
    assert found | {"file": ""} == expected | {"file": ""}


def test_what_json_does_not_allow_is_read_all_the_same(tmp_path: Path) -> None:
    text = json.dumps({"traceEvents": device_trace().events})
    expected = content(read_trace(_written(tmp_path / "a.json", text.encode())))
    odd = [
        '{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": NaN, "dur": 1}',
        '{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 11000, "dur": -3}',
        '{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": "soon", "dur": 1}',
        '{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "dur": 1}',
        '["no event"]',
    ]
    good = (
        '{"ph": "X", "cat": "cpu_op", "name": "a\tb", "pid": 0, "tid": 7, "ts": 12000, "dur": 1,'
        ' "args": {"occupancy": nan, "bandwidth": -inf, "x": Infinity, "correlation": null}}'
    )
    mixed = text.replace('"traceEvents": [', '"traceEvents": [' + ", ".join([*odd, good]) + ", ")
    trace = read_trace(_written(tmp_path / "b.json", mixed.encode().replace(b"a\tb", b"a\t\xff")))
    assert trace.dropped == len(odd)
    assert [row for row in content(trace) if not row[1].startswith("a\t")] == expected
    assert any(name.startswith("a\t") for name in trace.names)


def test_a_bare_list_may_lack_its_bracket(tmp_path: Path) -> None:
    text = json.dumps(device_trace().events)
    whole = content(read_trace(_written(tmp_path / "a.json", text.encode())))
    assert content(read_trace(_written(tmp_path / "b.json", text[:-1].encode() + b",\n"))) == whole


def test_old_operators_that_are_annotations_become_such(tmp_path: Path) -> None:
    trace = read_trace(device_trace().write(tmp_path / "a.json", old=True))
    marks = {trace.names[i] for i in trace.name_N[trace.where(Kind.ANNOTATION)]}
    assert {"ProfilerStep#5", "Optimizer.step#SGD.step"} < marks


DAMAGED = {
    "empty": b"",
    "text": b"not json at all",
    "number": b"42",
    "other": b'{"a": [1, 2], "b": {"c": "d"}}',
    "no events": b'{"traceEvents": []}',
    "strings": b'["a", "b"]',
    "only flows": b'{"traceEvents": [{"ph": "s", "id": 1, "ts": 3}]}',
    "gzip of text": gzip.compress(b"hello"),
    "comma": b'{"traceEvents": [{"ph": "X", "cat": "cpu_op",, "name": "a"}]}',
    "brace": b'{"traceEvents": [{"ph": "X"}}}]}',
    "binary": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_trace_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = _written(tmp_path / "bad.json", DAMAGED[kind])
    with pytest.raises(UserError) as refused:
        read_trace(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.77, 0.97])
@pytest.mark.parametrize("packed", [False, True], ids=["json", "gz"])
@pytest.mark.parametrize("block", [200, 1 << 20])
def test_a_file_that_was_cut_off_is_refused(
    share: float, packed: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "BLOCK", block)
    whole = device_trace().write(tmp_path / ("whole.json" + ".gz" * packed)).read_bytes()
    path = _written(tmp_path / "cut.json", whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cut off|no trace|damaged"):
        read_trace(path)


def test_a_changed_byte_of_a_gzip_file_is_noticed(tmp_path: Path) -> None:
    whole = bytearray(device_trace().write(tmp_path / "whole.json.gz").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    with pytest.raises(UserError, match=r"damaged|cut off"):
        read_trace(_written(tmp_path / "bad.json.gz", bytes(whole)))


def test_a_folder_stands_for_its_traces(tmp_path: Path) -> None:
    for rank in (1, 0):
        TraceWriter().write(tmp_path / f"run.rank{rank}.pt.trace.json.gz")
    (tmp_path / "run.capture.json").write_text("{}")
    assert [path.name[:9] for path in trace_files([tmp_path])] == ["run.rank0", "run.rank1"]
    (tmp_path / "none").mkdir()
    for path in (tmp_path / "none", tmp_path / "absent.json"):
        with pytest.raises(UserError, match=r"\.json\.gz"):
            trace_files([path])


def test_the_rank_is_the_headers_else_the_names(tmp_path: Path) -> None:
    named = device_trace(rank=3).write(tmp_path / "rank-7.json")
    assert read_trace(named).rank == 3
    assert read_trace(device_trace().write(tmp_path / "rank-7.json")).rank == 7
    assert read_trace(device_trace().write(tmp_path / "x.json")).rank is None


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
