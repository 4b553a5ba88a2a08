"""Kernel and operator tables, FLOPs, peaks and memory against figures worked out by hand or by torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from traces import TraceWriter, device_trace

from fastvicreg.profiles.trace.events import read_trace
from fastvicreg.profiles.trace.roofline import device_peak, operator_work
from fastvicreg.profiles.trace.summary import Summary, summarize
from fastvicreg.profiles.trace.tables import normalised, short_name


def summary(writer: TraceWriter, folder: Path, name: str = "trace.json") -> Summary:
    return summarize(read_trace(writer.write(folder / name)))


def test_the_tables_hold_times_counts_and_the_share_of_the_peak(tmp_path: Path) -> None:
    found = summary(device_trace(), tmp_path)
    gemm, nccl = found.kernels
    assert gemm.name == "ampere_sgemm_128x64_tn"
    assert (gemm.calls, gemm.ms, gemm.mean_us) == pytest.approx((3, 0.9, 300))
    assert gemm.share == pytest.approx(2 / 3)
    assert gemm.roofline == pytest.approx(2 * 512 * 1024 * 256 / 300e-6 / 19.5e12)
    assert nccl.name == "ncclDevKernel_AllReduce_Sum_f32_RING_LL"
    assert nccl.roofline is None
    operators = {row.name: row for row in found.operators}
    assert operators["aten::mm"].host_ms == pytest.approx(0.246)
    assert operators["aten::mm"].device_ms == pytest.approx(0.9)
    assert operators["aten::mm"].calls == 3


def test_memory_peaks_come_from_totals_else_from_the_log(tmp_path: Path) -> None:
    writer = device_trace(steps=1)
    for ts, size, total in ((1, 100, 5100), (2, 900, 6000), (3, -1000, 5000)):
        writer.memory(ts, size, total, device=0)
    for ts, size in ((1, 300), (2, 500), (3, -700)):
        writer.memory(ts, size, 0)
    peaks = {where: use.peak for where, use in summary(writer, tmp_path).memory.items()}
    assert peaks == {"host": 800, "device 0": 6000}


@pytest.mark.parametrize(
    ("name", "dims", "types", "concrete", "flops"),
    [
        ("aten::mm", "[[4, 5], [5, 6]]", '["float", "float"]', "", 240),
        ("aten::addmm", "[[6], [4, 5], [5, 6]]", '["float", "float", "float"]', "", 240),
        ("aten::bmm", "[[3, 4, 5], [3, 5, 6]]", '["float", "float"]', "", 720),
        ("aten::linear", "[[2, 4, 5], [6, 5], [6]]", '["float", "float", "float"]', "", 480),
        (
            "aten::cudnn_convolution", "[[2, 6, 9, 9], [8, 3, 3, 3]]", '["float", "float"]',
            '["", "", "[1, 1]", "[2, 2]", "[1, 1]", "2"]', 2 * 2 * 25 * 8 * 3 * 9,
        ),
        (
            "aten::convolution_backward", "[[2, 8, 5, 5], [2, 6, 9, 9], [8, 3, 3, 3]]", '["float", "float", "float"]',
            '["[True, True, False]"]', 2 * 2 * 2 * 25 * 8 * 3 * 9,
        ),
        ("aten::mm", "[[4, 5], [7, 6]]", '["float", "float"]', "", None),
        ("aten::mm", "[]", "[]", "", None),
        ("aten::cudnn_convolution", "[[2, 6, 9, 9], [8, 3, 3, 3]]", '["float", "float"]', "", None),
        ("aten::add", "[[4, 5], [4, 5]]", '["float", "float"]', "", None),
    ],
)  # fmt: skip
def test_flops_come_from_the_shapes(name: str, dims: str, types: str, concrete: str, flops: float | None) -> None:
    work = operator_work(name, (dims.encode(), types.encode(), concrete.encode()))
    assert (work and work.flops) == flops


def test_flops_of_convolutions_are_those_that_torch_counts() -> None:
    image = torch.randn(2, 6, 11, 9, requires_grad=True)
    weight = torch.randn(8, 6, 3, 2, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = torch.nn.functional.conv2d(image, weight, stride=2, padding=1)
    concrete = b'["", "", "", "[2, 2]", "[1, 1]", "[1, 1]"]'
    shape = (str([list(image.shape), list(weight.shape)]).encode(), b'["float", "float"]', concrete)
    work = operator_work("aten::convolution", shape)
    assert work is not None
    assert work.flops == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    dims = str([list(out.shape), list(image.shape), list(weight.shape)]).encode()
    work = operator_work("aten::convolution_backward", (dims, b'["float"]', b'["[True, True, True]"]'))
    assert work is not None
    assert work.flops == backward.get_total_flops()


def test_peaks_are_found_by_the_devices_name() -> None:
    for name, dtype, tflops in (
        ("Tesla V100-DGXS-32GB", "fp16", 125.0),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156.0),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.0),
        ("NVIDIA H200", "bf16", 989.0),
        ("NVIDIA B200", "bf16", 2250.0),
        ("AMD Instinct MI300X", "bf16", 1307.4),
    ):
        peak = device_peak(name)
        assert peak is not None
        assert peak.tflops[dtype] == tflops
    assert device_peak("GeForce 256") is None
    assert device_peak(None) is None


def test_kernel_names_lose_what_differs_from_run_to_run() -> None:
    name = (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul> >"
        "(int, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>)"
    )
    assert short_name(name) == "at::native::vectorized_elementwise_kernel<CUDAFunctor_add>"
    assert short_name("void (anonymous namespace)::softmax_warp<float, 9>(float*)") == "softmax_warp"
    assert normalised("triton_poi_fused_add_12(float*)") == normalised("triton_poi_fused_add_7(float*)")
    assert normalised("kernel_0x7f21_a") == normalised("kernel_0x88ab_a")
    assert normalised("volta_sgemm_128x64_nn") != normalised("volta_dgemm_128x64_nn")
