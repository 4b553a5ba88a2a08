"""Verdicts on traces whose truth is known: each kind of cause is named as it is, with its call and its share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from traces import AUTOGRAD, MAIN, STEP, TraceWriter, device_trace, loop, summary

from fastvicreg.profiles.trace.stages import DATA
from fastvicreg.profiles.trace.verdict import advice


def copy(writer: TraceWriter, name: str, call: tuple[str, float, float], run: tuple[float, float]) -> None:
    writer.launch(name, (call[1], call[2]), run, kind="gpu_memcpy", stream=8)
    writer.events[-4]["name"] = call[0]


def test_a_kernel_belongs_to_the_operator_around_its_launch_whatever_its_external_id_says(tmp_path: Path) -> None:
    writer, starts = loop(1)
    at = starts[0]
    writer.op("aten::addmm", at + 300, 100, **{"External id": 11})
    writer.op("aten::mm", at + 310, 60, **{"External id": 12})
    writer.launch("k_mm", (at + 320, 5), (at + 400, 100))
    correlation = writer.events[-4]["args"]["correlation"]
    for event in writer.events[-4:-2]:
        event["args"]["External id"] = correlation
    writer.op("aten::copy_", at + 600, 50, **{"External id": correlation})
    found = {row.name: row.device_ms for row in summary(writer, tmp_path).operators}
    assert found == {"aten::addmm": 0, "aten::mm": pytest.approx(0.1), "aten::copy_": 0}


def test_a_graph_launch_gives_all_its_kernels_to_its_operator_and_backward_threads_count(tmp_path: Path) -> None:
    writer, starts = loop(1)
    at = starts[0]
    writer.op("graphed", at + 220, 30)
    writer.launch("a", (at + 225, 10), (at + 240, 40))
    writer.events[-4]["name"] = "cudaGraphLaunch"
    number = writer.events[-3]["args"]["correlation"]
    writer.add("kernel", "b", at + 290, 60, 7, 0, device=0, stream=7, correlation=number)
    writer.op("MmBackward0", at + 400, 100, tid=AUTOGRAD)
    writer.op("aten::mm", at + 410, 80, tid=AUTOGRAD)
    writer.launch("c", (at + 420, 5), (at + 430, 70), tid=AUTOGRAD)
    found = {row.name: row.device_ms for row in summary(writer, tmp_path).operators}
    assert found == {"graphed": pytest.approx(0.1), "MmBackward0": 0, "aten::mm": pytest.approx(0.07)}


def test_without_a_call_the_external_id_tells_the_operator(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.op("aten::mm", 0, 100, **{"External id": 7})
    writer.add("kernel", "k", 150, 80, 7, 0, device=0, stream=7, correlation=5, **{"External id": 7})
    assert [row.device_ms for row in summary(writer, tmp_path).operators] == [pytest.approx(0.08)]


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("cudaMemcpyAsync", "Memcpy DtoH (Device -> Pageable)"),
        ("cudaMemcpyAsync", "Memcpy DtoH (Device -> Pinned)"),  # its call returns after the copy: it waited
        ("hipMemcpyWithStream", "CopyDeviceToHost"),
    ],
)
def test_a_copy_that_blocks_the_host_is_a_synchronisation_and_named(call: str, kind: str, tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.op("aten::copy_", at + 20, 900)
        copy(writer, kind, (call, at + 25, 890), (at + 900, 5))
    found = summary(writer, tmp_path)
    assert found.verdict.bound == "sync"
    assert re.search(rf"{call} 6\d\.\d% of the step", found.verdict.text)
    assert "pinned memory" in found.verdict.text


@pytest.mark.parametrize(
    "call",
    [
        *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "hipStreamSynchronize"),
        *("urQueueFinish", "zeCommandQueueSynchronize", "aclrtSynchronizeStream", "cuMemcpyDtoH_v2", "cudaMemcpy"),
    ],
)
def test_calls_that_wait_for_the_device_are_synchronisations(call: str, tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.call(call, at + 20, 900)
    found = summary(writer, tmp_path)
    assert found.verdict.bound == "sync"
    assert f"({call} 70.8% of the step)" in found.verdict.text


@pytest.mark.parametrize("call", ["cudaFree", "hipFree", "cudaMalloc", "cudaHostAlloc", "cuMemAlloc_v2"])
def test_the_drivers_allocator_is_named(call: str, tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.call(call, at + 300, 600)
    found = summary(writer, tmp_path)
    assert found.verdict.bound == "allocator"
    assert f"{call} 60.0% of the step" in found.verdict.text
    assert "graphs" not in found.verdict.text


def test_start_up_is_told_apart_and_the_rest_judged_without_it(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.call("cudaDeviceGetStreamPriorityRange", 0, 19_000_000)
    writer.call("cudaFree", 19_000_000, 100_000)  # before anything ran: the context is being created
    writer.op("aten::mm", 19_200_000, 50_000)
    writer.launch("gemm", (19_249_000, 5), (19_250_000, 100))
    found = summary(writer, tmp_path)
    assert found.verdict.bound == "startup"
    assert found.verdict.text.startswith("Start-up: ")
    assert "cudaDeviceGetStreamPriorityRange 98.7% of the step" in found.verdict.text
    assert "of the rest host takes 100%" in found.verdict.text
    assert "schedule(wait=" in found.verdict.text


def test_a_kernels_first_launch_that_loads_its_code_is_start_up_and_later_ones_are_launches(tmp_path: Path) -> None:
    writer, starts = loop(1)
    writer.launch("relu", (starts[0] + 300, 500), (starts[0] + 801, 5))
    assert summary(writer, tmp_path).verdict.bound == "startup"
    writer, starts = loop()
    for at in starts:
        writer.launch("gemm", (at + 300, 500), (at + 801, 5))
    assert summary(writer, tmp_path).verdict.bound == "launch"


def test_a_launch_counts_while_its_call_is_open_and_no_longer(tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.call("cudaStreamWaitEvent", at + 220, 2)
        writer.launch("late", (at + 225, 5), (at + 900, 50))
    found = summary(writer, tmp_path)
    assert found.idle_by is not None
    assert found.idle_by["launch"] == pytest.approx(0.010, abs=1e-3)
    assert found.idle_by["python"] > 0.6
    assert found.verdict.bound == "host"
    assert "Python" in found.verdict.text


def test_launches_back_to_back_are_launch_bound(tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        for number in range(70):
            writer.launch("tiny", (at + 220 + 10 * number, 9), (at + 229 + 10 * number, 1))
    found = summary(writer, tmp_path)
    assert found.verdict.bound == "launch"
    assert "cudaLaunchKernel" in found.verdict.text
    assert "CUDA graphs" in found.verdict.text


def test_an_operators_share_is_of_the_step_and_python_is_named_with_its_frame(tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.add("python_function", "train.py(10): step", at + 1, 990)
        writer.add("python_function", "train.py(20): log_everything", at + 230, 700)
        writer.add("python_function", "<built-in method sleep>", at + 240, 600)
        writer.op("aten::copy_", at + 950, 20)
    found = summary(writer, tmp_path)
    assert found.verdict.bound == "host"
    assert "train.py(20): log_everything 70.0%" in found.verdict.text
    assert "aten::copy_ 2.0%" in found.verdict.text
    assert "take Python out of the step" in found.verdict.text


def test_another_thread_that_waits_is_not_what_the_step_waits_for(tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.launch("side", (at + 12, 2), (at + 20, 10), tid=AUTOGRAD, stream=9)
        writer.call("cudaStreamSynchronize", at + 100, 890, tid=AUTOGRAD)
        writer.op("aten::nonsense", at + 220, 770)
    found = summary(writer, tmp_path)
    assert found.verdict.bound == "host"
    assert "aten::nonsense 77.0%" in found.verdict.text


def test_without_anything_of_the_host_idle_time_is_unexplained(tmp_path: Path) -> None:
    writer = TraceWriter()
    for number in range(20):
        writer.add("kernel", "k", 1000.0 * number, 500, 7, 0, device=0, stream=7, correlation=number)
    found = summary(writer, tmp_path)
    assert found.verdict.bound == "unknown"
    assert "49%" in found.verdict.text
    assert "ProfilerActivity.CPU" in found.verdict.text


def test_launches_without_kernels_are_not_recorded_and_nothing_is_said_of_the_device(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.step(1, 0, 1000)
    writer.op("aten::mm", 0, 500)
    writer.call("cudaLaunchKernel", 20, 5)
    found = summary(writer, tmp_path)
    assert found.verdict.text.startswith("Not recorded: 1 launches (cudaLaunchKernel) and not one kernel")
    assert "ProfilerActivity.CUDA" in found.verdict.text
    assert found.device_shares is None


DATA_NAMES = (
    *(
        "data_loading",
        "load_batch",
        "wait_for_batch",
        "dataloader",
        "## data_load ##",
        "get_batch_samples",
        "data wait",
    ),
    *("train/next_batch", "DataLoader.__next__", "enumerate(DataLoader)#_Iter.__next__", "fv.data_wait", "data"),
)


@pytest.mark.parametrize("name", DATA_NAMES)
def test_annotations_of_waiting_for_data_are_known_by_many_names(name: str, tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.mark(name, at + 220, 700)
    assert summary(writer, tmp_path).verdict.bound == "data"


def test_what_only_sounds_like_data_is_none() -> None:
    for name in ("all2all_data:kjt splits", "batch_norm", "update_metadata", "data_parallel", "input_projection"):
        assert not DATA.search(name)


def test_the_loaders_python_frames_are_waiting_for_data(tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.add("python_function", "torch/utils/data/dataloader.py(1200): _next_data", at + 220, 700)
    found = summary(writer, tmp_path)
    assert found.verdict.bound == "data"
    assert "_next_data 70.0% of the step" in found.verdict.text


def test_on_the_host_python_between_operators_is_told_from_them(tmp_path: Path) -> None:
    writer = TraceWriter()
    for number in range(4):
        writer.step(number, number * STEP, STEP)
        writer.add("python_function", "train.py(3): run", number * STEP, 999)
        writer.op("aten::mm", number * STEP + 500, 50)
        writer.op("aten::mul", number * STEP + 700, 100, tid=AUTOGRAD)
    found = summary(writer, tmp_path)
    assert found.host is not None
    assert found.host.shares == pytest.approx({"data": 0, "comm": 0, "operators": 0.05, "python": 0.95})
    assert found.verdict.bound == "host"
    assert "train.py(3): run 95% of the step" in found.verdict.text
    assert [(row.name, row.operators) for row in found.threads] == [
        (f"thread {AUTOGRAD}", 4), (f"thread {MAIN} (the step's)", 4),
    ]  # fmt: skip


def test_advice_leaves_out_what_is_in_use(tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.launch("sm90_xmma_gemm_bf16bf16_nhwc", (at + 20, 5), (at + 212, 780))
        writer.op("aten::conv2d", at + 18, 10)
    text = summary(writer, tmp_path).verdict.text
    assert "bf16," not in text.partition("; next: ")[2]
    assert "channels_last" not in text
    assert "torch.compile" in text
    assert advice("launch", {"graphs", "compile"}) == "launch less: fused kernels (--kernel), a larger batch"


def test_what_a_trace_does_not_contain_is_said(tmp_path: Path) -> None:
    writer, _ = loop()
    missing = " ".join(summary(writer, tmp_path).missing)
    for word in ("operators", "with_stack", "record_shapes", "profile_memory"):
        assert word in missing
    assert "launched" not in missing
    assert "steps" not in missing
    assert not [line for line in summary(device_trace(), tmp_path).missing if "shapes" in line or "operators" in line]
