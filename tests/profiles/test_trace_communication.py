"""Communication is known by many names, told as hidden and exposed, and shows which rank the others wait for."""

from __future__ import annotations

from pathlib import Path

import pytest
from traces import STEP, TraceWriter, loop, summary

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace.ranks import find_straggler, straggler


@pytest.mark.parametrize(
    "kernel",
    [
        *(
            "ncclDevKernel_AllReduce_Sum_f32_RING_LL",
            "rcclGenericKernel",
            "void mscclpp::allreduce",
            "hcom_allReduce__1",
        ),
        *("void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<x>", "rocshmem_putmem"),
        *("void deep_ep::internode::dispatch<false,4>", "aiter::cross_device_reduce_2stage", "oneShotAllReduceKernel"),
        *("userbuffers_fp16_sum_inplace", "multimem_all_reduce_kernel", "quickreduce::twoshot", "oneccl_all_reduce"),
        *("vllm::cross_device_reduce_1stage", "symm_mem_two_shot", "ncclKernel_SendRecv_RING"),
    ],
)
def test_kernels_that_communicate_are_known_by_many_names(kernel: str, tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.launch(kernel, (at + 20, 5), (at + 212, 780), stream=20)
    assert summary(writer, tmp_path).verdict.bound == "comm"


@pytest.mark.parametrize("kernel", ["small_reduce_kernel", "reduce_kernel", "vectorized_gather", "overall_reduce"])
def test_kernels_that_reduce_or_gather_alone_do_not_communicate(kernel: str, tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.launch(kernel, (at + 20, 5), (at + 212, 780), stream=20)
    assert summary(writer, tmp_path).verdict.bound == "compute"
    assert summary(writer, tmp_path, comm="redu|gather").verdict.bound == "comm"
    with pytest.raises(UserError, match="regular expression"):
        summary(writer, tmp_path, comm="(")


def test_hidden_communication_and_bandwidth_are_told(tmp_path: Path) -> None:
    writer, starts = loop()
    for at in starts:
        writer.launch("ncclDevKernel_AllReduce", (at + 20, 5), (at + 112, 400), stream=20)
        writer.events[-3]["args"] |= {
            "Collective name": "allreduce", "In msg nelems": 1_000_000, "Out msg nelems": 1_000_000, "Group size": 8,
            "dtype": "BFloat16",
        }  # fmt: skip
    found = summary(writer, tmp_path).communication
    assert found is not None
    assert (found.exposed_us, found.hidden_us) == pytest.approx((1200, 400))
    assert found.overlap == pytest.approx(0.25)
    (row,) = found.collectives
    assert row == ("allreduce", 4, pytest.approx(1.6), 2e6, pytest.approx(2e6 / 400e-6 / 1e9))


def test_the_straggler_is_found_though_clocks_differ(tmp_path: Path) -> None:
    found = []
    for rank in range(3):
        writer, late = TraceWriter(rank=rank), 300.0 * (rank == 1)
        for number in range(4):
            at = 5e6 * rank + number * STEP  # clocks that are apart by seconds
            writer.step(number, at, STEP)
            writer.launch("gemm", (at + 5, 5), (at + 12, 200 + late))
            writer.launch("ncclDevKernel_AllReduce", (at + 20, 5), (at + 212 + late, 400 - late), stream=20)
        found.append(summary(writer, tmp_path, f"{rank}.json"))
    slow = find_straggler(found)
    assert slow is not None
    assert (slow.rank, slow.last, slow.collectives) == (1, 4, 4)
    assert slow.waited_ms == pytest.approx(0.3)
    line = straggler(found)
    assert line is not None
    assert line.endswith("up to 0.30 ms a step; it spends 0.30 ms more of a step computing.")
    assert find_straggler(found[:1]) is None
    assert find_straggler([found[0], found[2]]) is None
