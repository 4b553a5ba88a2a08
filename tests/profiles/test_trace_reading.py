"""Whatever a profiler of any version wrote is read alike, in pieces of any size; what is no trace is one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from traces import TraceWriter, content, device_trace, written

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace import blocks
from fastvicreg.profiles.trace.events import Kind, read_trace
from fastvicreg.profiles.trace.files import trace_files
from fastvicreg.profiles.trace.summary import summarize


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
    monkeypatch.setattr(blocks, "BLOCK", block)
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
    expected = content(read_trace(written(tmp_path / "a.json", text.encode())))
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
    trace = read_trace(written(tmp_path / "b.json", mixed.encode().replace(b"a\tb", b"a\t\xff")))
    assert trace.dropped == len(odd)
    assert [row for row in content(trace) if not row[1].startswith("a\t")] == expected
    assert any(name.startswith("a\t") for name in trace.names)


def test_a_bare_list_may_lack_its_bracket(tmp_path: Path) -> None:
    text = json.dumps(device_trace().events)
    whole = content(read_trace(written(tmp_path / "a.json", text.encode())))
    assert content(read_trace(written(tmp_path / "b.json", text[:-1].encode() + b",\n"))) == whole


def test_old_operators_that_are_annotations_become_such(tmp_path: Path) -> None:
    trace = read_trace(device_trace().write(tmp_path / "a.json", old=True))
    marks = {trace.names[i] for i in trace.name_N[trace.where(Kind.ANNOTATION)]}
    assert {"ProfilerStep#5", "Optimizer.step#SGD.step"} < marks


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


def _plain(tmp_path: Path, writer: TraceWriter | None = None) -> tuple[Path, str]:
    path = (writer or device_trace()).write(tmp_path / "plain.json")
    return path, path.read_text()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"aten::mm"', r'"C:\Users\foo\train.py(3): \new"', "backslashes"),
        ('"correlation": 1001', '"est. achieved occupancy %": N/A, "correlation": 1001', "words"),
        ('"aten::mm"', '"say "aten::mm" aloud"', "quotes"),
        ('"aten::mm"', '"one " too many"', "quotes"),
    ],
    ids=["windows path", "N/A", "quotes", "one quote"],
)
@pytest.mark.parametrize("block", [700, 1 << 20])
def test_what_is_almost_json_is_mended_and_said(
    old: str, new: str, fault: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    path, text = _plain(tmp_path)
    whole = read_trace(path)
    found = read_trace(written(tmp_path / "bad.json", text.replace(old, new).encode()))
    assert len(found.kind_N) == len(whole.kind_N)
    assert found.dropped == 0
    assert [fault in line for line in found.faults] == [True]
    assert np.array_equal(found.start_N, whole.start_N)


def test_a_windows_path_keeps_its_letters(tmp_path: Path) -> None:
    _, text = _plain(tmp_path)
    trace = read_trace(written(tmp_path / "bad.json", text.replace('"aten::mm"', r'"C:\Users\foo\train.py"').encode()))
    assert r"C:\Users\foo\train.py" in trace.names


@pytest.mark.parametrize("number", [1 << 63, (1 << 64) + 7, 10**400], ids=["63 bits", "64 bits", "400 digits"])
def test_numbers_of_any_size_tie_a_kernel_to_its_launch(number: int, tmp_path: Path) -> None:
    path, text = _plain(tmp_path)
    found = read_trace(
        written(tmp_path / "big.json", text.replace('"correlation": 1001', f'"correlation": {number}').encode())
    )
    assert len(found.kind_N) == len(read_trace(path).kind_N)
    tied = found.correlation_N > 10_000
    assert sorted(found.kind_N[tied].tolist()) == [Kind.RUNTIME, Kind.KERNEL]
    assert len(set(found.correlation_N[tied].tolist())) == 1


def test_a_field_of_an_impossible_type_costs_only_itself(tmp_path: Path) -> None:
    path, text = _plain(tmp_path)
    odd = text.replace('"correlation": 1001, "External id": 1}', '"correlation": [1], "External id": 1}')
    found = read_trace(written(tmp_path / "odd.json", odd.encode()))
    assert odd != text
    assert (found.dropped, len(found.kind_N)) == (0, len(read_trace(path).kind_N))
    assert 1 in found.external_N[found.correlation_N == -1].tolist()


def test_events_without_a_time_do_not_stretch_the_trace(tmp_path: Path) -> None:
    writer = device_trace()
    for event in writer.events:
        event["ts"] += 1.6e15
    writer.add("kernel", "late", 0, 0, 7, 0, correlation=1)
    found = read_trace(writer.write(tmp_path / "a.json"))
    assert found.end_N.max() < 1e6
    assert found.faults == ("1 events at time 0 left out: they have no time.",)
    early = device_trace()
    early.op("aten::first", 0, 10)
    assert read_trace(early.write(tmp_path / "b.json")).faults == ()


def test_names_cannot_drive_a_terminal(tmp_path: Path) -> None:
    writer = TraceWriter(device="NVIDIA\x1b[31m A100")
    writer.launch("k\x1b]0;owned\x07\u202e", (0, 5), (10, 50))
    trace = read_trace(writer.write(tmp_path / "a.json"))
    assert "k\\x1b]0;owned\\x07\\u202e" in trace.names
    assert trace.device_name == "NVIDIA\\x1b[31m A100"


def test_exports_without_categories_are_read_by_their_processes(tmp_path: Path) -> None:
    events = [
        {"ph": "X", "name": "aten::mm", "ts": 0, "dur": 50, "tid": 1, "pid": "CPU functions", "args": {}},
        {"ph": "X", "name": "sgemm", "ts": 10, "dur": 30, "tid": 0, "pid": "CUDA functions", "args": {}},
        {"ph": "M", "name": "process_name", "pid": 5, "args": {"name": "Ascend Hardware"}},
        {"ph": "M", "name": "process_name", "pid": 6, "args": {"name": "CANN"}},
        {"ph": "X", "name": "MatMulV2", "ts": 60, "dur": 30, "tid": 2, "pid": 5, "args": {"Stream Id": 2}},
        {"ph": "X", "name": "AscendCL@aclopExecute", "ts": 55, "dur": 3, "tid": 2, "pid": 6},
    ]
    trace = read_trace(written(tmp_path / "old.json", json.dumps(events).encode()))
    assert [row[:2] for row in content(trace)] == [
        (Kind.OP, "aten::mm"), (Kind.KERNEL, "sgemm"), (Kind.RUNTIME, "AscendCL@aclopExecute"),
        (Kind.KERNEL, "MatMulV2"),
    ]  # fmt: skip


def test_categories_of_other_devices_are_their_work_or_are_counted(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.add("mtia_ccp_events", "mm", 0, 10, 3, 0)
    writer.add("mtia_runtime", "launch", 0, 1)
    writer.add("privateuse1_driver", "npuLaunch", 2, 1)
    writer.add("new_engine", "conv", 20, 10, 3, 0, stream=4)
    writer.add("new_engine_memcpy", "to host", 40, 10, 3, 0, stream=4)
    writer.add("weather", "rain", 50, 10)
    trace = read_trace(writer.write(tmp_path / "a.json"))
    kinds = {trace.names[n]: Kind(k) for n, k in zip(trace.name_N, trace.kind_N, strict=True)}
    assert kinds == {
        "mm": Kind.KERNEL, "launch": Kind.RUNTIME, "npuLaunch": Kind.RUNTIME, "conv": Kind.KERNEL, "to host": Kind.COPY,
    }  # fmt: skip
    assert trace.foreign == {"new_engine": 1, "new_engine_memcpy": 1, "weather": 1}


def test_a_device_whose_number_the_header_does_not_list_has_the_only_name_there_is(tmp_path: Path) -> None:
    writer = TraceWriter(device="AMD Instinct MI300X VF")
    writer.launch("k", (0, 5), (10, 50), device=2)
    assert read_trace(writer.write(tmp_path / "a.json")).device_name == "AMD Instinct MI300X VF"
    writer.header["deviceProperties"].append({"id": 1, "name": "another"})
    assert read_trace(writer.write(tmp_path / "a.json")).device_name is None
