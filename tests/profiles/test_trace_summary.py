"""Summaries of traces whose true figures are known, and of one that torch.profiler records here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from traces import AUTOGRAD, TraceWriter, device_trace

from fastvicreg import stages as names
from fastvicreg.profiles.trace.events import read_trace
from fastvicreg.profiles.trace.ranks import straggler
from fastvicreg.profiles.trace.summary import Summary, summarize
from fastvicreg.profiles.trace.text import notes
from fastvicreg.profiles.trace.verdict import judge_device, judge_host


def summary(writer: TraceWriter, folder: Path, name: str = "trace.json") -> Summary:
    return summarize(read_trace(writer.write(folder / name)))


def near(values: dict[str, float], **expected: float) -> None:
    assert {k: v for k, v in values.items() if v > 1e-9} == pytest.approx(expected)


def test_the_step_is_divided_as_it_was_made(tmp_path: Path) -> None:
    found = summary(device_trace(), tmp_path)
    assert found.steps.source == "ProfilerStep"
    assert found.steps.names == ("ProfilerStep#5", "ProfilerStep#6", "ProfilerStep#7")
    assert found.step_ms == pytest.approx({"p50": 1.0, "p95": 1.0})
    assert found.device_shares is not None
    assert found.idle_by is not None
    near(found.device_shares, compute=0.3, comm=0.1, copy=0.05, idle=0.55)
    near(found.idle_by, data=0.3, host_op=0.124, launch=0.031, sync=0.08, python=0.015)
    stages = {"enumerate(DataLoader)": 0.3, "forward": 0.097, "Optimizer.step": 0.06, "other": 0.543}
    near(found.stage_shares, **stages)
    assert found.stages.derived == {"forward"}
    near(found.stage_device_ms, forward=0.5)
    assert found.verdict.bound == "data"
    assert "30% of the step" in found.verdict.text
    assert "--pipeline" in found.verdict.text
    assert [(s.name, round(s.busy_us)) for s in found.device.streams] == [("stream 7", 1050), ("stream 20", 450)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("shares", "idle", "bound"),
    [
        ({"compute": 0.85}, {"data": 0.09, "python": 0.06}, "compute"),
        ({"compute": 0.5}, {"data": 0.2, "host_op": 0.15, "python": 0.15}, "host"),
        ({"compute": 0.5, "comm": 0.4}, {"data": 0.1}, "comm"),
        ({"compute": 0.6, "copy": 0.3}, {"data": 0.1}, "copy"),
        ({"compute": 0.6}, {"sync": 0.25, "launch": 0.15}, "sync"),
        ({"compute": 0.6}, {"sync": 0.15, "launch": 0.25}, "launch"),
        ({"compute": 0.6}, {"data": 0.21, "host_op": 0.1, "python": 0.09}, "data"),
        ({"compute": 0.9}, {"data": 0.10}, "compute"),
    ],
)
def test_the_verdict_is_the_largest_wait_over_a_tenth(
    shares: dict[str, float], idle: dict[str, float], bound: str
) -> None:
    parts: dict[str, float] = {"compute": 0.0, "comm": 0.0, "copy": 0.0, "idle": 0.0, **shares}
    causes: dict[str, float] = {"data": 0.0, "sync": 0.0, "launch": 0.0, "host_op": 0.0, "python": 0.0, **idle}
    verdict = judge_device(parts, causes, {})
    assert verdict.bound == bound
    assert verdict.text.count("\n") == 0


@pytest.mark.parametrize(
    ("shares", "bound"),
    [
        ({"operators": 0.93, "data": 0.05, "comm": 0.02}, "compute"),
        ({"operators": 0.5, "data": 0.3, "comm": 0.2}, "data"),
        ({"operators": 0.5, "data": 0.1, "comm": 0.4}, "comm"),
        ({"operators": 0.05, "python": 0.95}, "host"),
        ({"operators": 0.6, "python": 0.4}, "host"),
        ({"operators": 0.7, "python": 0.3}, "compute"),
        ({"operators": 0.1, "data": 0.2, "python": 0.7}, "host"),
    ],
)
def test_a_host_without_a_device_is_judged_by_data_operators_and_python(shares: dict[str, float], bound: str) -> None:
    every = dict.fromkeys(("data", "comm", "operators", "python"), 0.0) | shares
    verdict = judge_host(every, {})
    assert verdict.bound == bound
    assert "no device" in verdict.text


def test_a_device_that_waits_in_communication_is_not_called_busy(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.step(1, 0, 1000)
    writer.op("aten::mm", 0, 20)
    writer.launch("gemm", (0, 5), (10, 190))
    writer.launch("ncclDevKernel_AllReduce", (8, 5), (100, 900), stream=20)
    found = summary(writer, tmp_path)
    assert found.device_shares is not None
    near(found.device_shares, compute=0.19, comm=0.8, idle=0.01)
    assert found.verdict.bound == "comm"


def test_a_host_in_our_collective_communicates_though_an_operator_waits_around_it(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.step(1, 0, 1000)
    writer.mark(names.FORWARD, 0, 1000)
    writer.op("aten::mm", 0, 200)
    writer.op("_Sum", 200, 700)
    writer.mark(names.COMM, 210, 690)
    assert summary(writer, tmp_path).verdict.text.startswith(
        "Communication-bound: the host waits in communication for 69%"
    )


def test_our_own_stages_are_taken_innermost_and_make_the_steps(tmp_path: Path) -> None:
    writer = TraceWriter()
    for number in range(4):
        at = 1000.0 * number
        writer.mark(names.DATA_WAIT, at, 400)
        if number == 3:
            break  # the epoch's end: a wait that no step follows
        writer.mark(names.FORWARD, at + 400, 300)
        writer.mark(names.LOSS, at + 600, 80)
        writer.mark(names.BACKWARD, at + 700, 200)
        writer.op("aten::mm", at + 400, 100)
        writer.mark("fv.decode", at, 900, tid=AUTOGRAD)  # a worker's, beside the step
    found = summary(writer, tmp_path)
    assert found.steps.source == "fv.data_wait"
    assert found.steps.ms.tolist() == [1.0, 1.0, 1.0]
    assert list(found.stage_shares) == ["fv.data_wait", "fv.forward", "fv.loss", "fv.backward", "other"]
    expected = {"fv.data_wait": 1200, "fv.forward": 660, "fv.loss": 240, "fv.backward": 600, "other": 300}
    near(found.stage_shares, **{name: us / 3000 for name, us in expected.items()})
    (worker,) = found.workers
    assert worker == ("fv.decode", 3, 1, pytest.approx(2.7))


def test_a_host_trace_says_nothing_of_a_device(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.header["deviceProperties"] = []
    for number in range(3):
        writer.step(number, 1000 * number, 1000)
        writer.mark(names.DATA_WAIT, 1000 * number, 600)
        writer.op("aten::convolution", 1000 * number + 600, 400)
    found = summary(writer, tmp_path)
    row = found.row()
    assert row["device"] is None
    assert row["idle_by"] is None
    assert found.kernels == []
    assert found.verdict.bound == "data"
    assert "60%" in found.verdict.text
    assert "GPU" not in found.verdict.text
    assert "no device" in found.verdict.text


def test_backward_is_derived_from_the_autograd_thread(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.step(1, 0, 1000)
    writer.op("aten::convolution", 100, 200)
    writer.op("autograd::engine::evaluate_function: ConvolutionBackward0", 320, 100, tid=AUTOGRAD)
    writer.op("aten::convolution_backward", 330, 50, tid=AUTOGRAD)
    writer.op("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 500, 100, tid=AUTOGRAD)
    writer.mark("Optimizer.step#Adam.step", 650, 250)
    writer.op("aten::_foreach_add_", 660, 200)
    found = summary(writer, tmp_path)
    near(found.stage_shares, **{"forward": 0.2, "backward": 0.28, "Optimizer.step": 0.25, "other": 0.27})
    assert found.stages.derived == {"forward", "backward"}


def test_annotations_around_whole_steps_are_looked_through(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.step(1, 0, 1000)
    writer.mark("train_one_epoch", 0, 1000)
    writer.mark("## forward ##", 0, 600)
    writer.mark("DistributedDataParallel.forward", 10, 580)
    writer.mark("## backward ##", 600, 400)
    near(summary(writer, tmp_path).stage_shares, forward=0.6, backward=0.4)


def test_without_marks_the_whole_trace_is_one_span_and_said_to_be(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.op("aten::mm", 500, 100)
    writer.launch("gemm", (510, 5), (600, 400))
    found = summary(writer, tmp_path)
    assert found.steps.source == "trace"
    assert found.step_ms["p50"] == pytest.approx(0.5)
    assert any("whole" in note for note in notes(found))


def test_events_of_no_length_and_one_event_alone_are_no_trouble(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.op("aten::empty", 500, 0)
    assert summary(writer, tmp_path).verdict.bound == "host"
    writer.launch("k", (500, 0), (500, 0))
    assert summary(writer, tmp_path).device_shares is not None
    writer.step(1, 500, 0)
    assert summary(writer, tmp_path).steps.source == "trace"


def test_shares_are_means_over_the_devices_that_work(tmp_path: Path) -> None:
    writer = device_trace()
    writer.launch("k", (10_100, 5), (10_110, 50), device=1)
    writer.launch("half_as_busy", (10_120, 5), (10_200, 675), device=2)
    found = summary(writer, tmp_path)
    assert [device.number for device in found.devices] == [0, 2, 1]
    assert found.device_shares is not None
    assert found.idle_by is not None
    near(found.device_shares, compute=(0.3 + 0.225) / 2, comm=0.05, copy=0.025, idle=(0.55 + 0.775) / 2)
    assert sum(found.idle_by.values()) == pytest.approx(found.device_shares["idle"])
    assert {row.name for row in found.kernels} >= {"k", "half_as_busy"}
    assert any("device 2 busy 22.5%" in note and "device 1 busy 1.7% (not counted)" in note for note in notes(found))


def test_the_rank_that_the_others_wait_for_is_named(tmp_path: Path) -> None:
    fast, slow = device_trace(rank=0), device_trace(rank=1, gemm_us=300)
    for number in range(3):
        slow.launch("late_gemm", (10_000 + 1000 * number + 399, 1), (10_700 + 1000 * number, 100))
    found = [summary(fast, tmp_path, "a.json"), summary(slow, tmp_path, "b.json")]
    line = straggler(found)
    assert line is not None
    assert line.startswith("rank 1 ")
    assert straggler(found[:1]) is None


def test_a_trace_that_torch_records_here(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1152, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "own.json.gz"
    with profile(
        activities=[ProfilerActivity.CPU], schedule=schedule(wait=0, warmup=1, active=3, repeat=1), record_shapes=True,
        profile_memory=True,
    ) as recorder:  # fmt: skip
        for _ in range(4):
            with record_function(names.DATA_WAIT):
                images = torch.randn(4, 3, 14, 14)
            with record_function(names.FORWARD):
                loss = model(images).square().mean()
            with record_function(names.BACKWARD):
                loss.backward()
            with record_function(names.OPTIMIZER):
                optimizer.step()
                optimizer.zero_grad()
            recorder.step()
    recorder.export_chrome_trace(str(path))
    found = summarize(read_trace(path))
    assert len(found.steps.names) + len(found.steps.apart) == 3
    assert found.steps.source == "ProfilerStep"
    assert {names.DATA_WAIT, names.FORWARD, names.BACKWARD, names.OPTIMIZER, "other"} == set(found.stage_shares)
    assert sum(found.stage_shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in found.stage_shares.values())
    assert found.device is None
    assert found.trace.dropped == 0
    operators = {row.name: row.calls for row in found.operators}
    assert operators["aten::addmm"] == len(found.steps.names)
    assert operators["aten::convolution_backward"] == len(found.steps.names)
    assert found.memory["host"].peak > 0
    recorded = dict.fromkeys(found.stage_shares, 0.0)
    for event in recorder.events() or ():
        if event.name in recorded:
            recorded[event.name] += event.time_range.elapsed_us()
    whole = found.steps.windows.total
    for name in (names.DATA_WAIT, names.FORWARD, names.BACKWARD, names.OPTIMIZER) if not found.steps.apart else ():
        assert found.stage_shares[name] * whole == pytest.approx(recorded[name], rel=0.02, abs=5)
