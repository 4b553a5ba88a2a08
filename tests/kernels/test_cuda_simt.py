"""The emulator of CUDA threads: it gives what a device gives, and it fails where a kernel is wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from simt import Fault, build, guarded, run_on_host
from torch import Tensor

REDUCTION = """
template <int WIDTH>
__device__ float block_total(float value) {
    __shared__ float part[WIDTH];
    part[threadIdx.x] = value;
#ifndef RACE
    __syncthreads();
#endif
    for (int half = WIDTH / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    return part[0];
}
extern "C" __global__ void __launch_bounds__(128) totals(const float* __restrict__ x, float* out, int n) {
    extern __shared__ __align__(16) float row[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = x[(long long)blockIdx.x * n + i];
    __syncthreads();
    float value = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) value += row[n - 1 - i];
    value = block_total<128>(value);
    if (threadIdx.x == 0) out[blockIdx.x] = value;
}
"""


def source(tmp_path: Path, text: str) -> str:
    (tmp_path / "kernel.cu").write_text(text)
    return str(tmp_path / "kernel.cu")


def one_line(tmp_path: Path, body: str, parameters: str = "float* x, int n") -> str:
    return source(tmp_path, f'extern "C" __global__ void run({parameters}) {{\n{body}\n}}\n')


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_reduction_is_right_in_any_order(tmp_path: Path, seed: int):
    x_RN = torch.randn(7, 301, generator=torch.Generator().manual_seed(0))
    out_R = torch.full((7,), torch.nan)
    path = source(tmp_path, REDUCTION)
    run_on_host(path, "totals", 7, 128, (x_RN, out_R, np.int32(301)), shared_bytes=301 * 4, seed=seed)
    torch.testing.assert_close(out_R, x_RN.sum(1), rtol=1e-5, atol=1e-5)


def test_a_missing_barrier_changes_the_result(tmp_path: Path):
    x_RN, out_R = torch.ones(7, 301), torch.full((7,), torch.nan)
    arguments = (x_RN, out_R, np.int32(301))
    path = source(tmp_path, REDUCTION)
    run_on_host(path, "totals", 7, 128, arguments, shared_bytes=301 * 4)
    assert out_R.tolist() == [301.0] * 7
    run_on_host(path, "totals", 7, 128, arguments, shared_bytes=301 * 4, defines={"RACE": 1})
    assert out_R.tolist() != [301.0] * 7


OVERTAKING = """
__shared__ float by_warp[8];
for (int turn = 0; turn < 2; ++turn) {
    float value = turn;
    for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(~0u, value, by);
#ifdef BARRIER
    __syncthreads();
#endif
    if (threadIdx.x % 32 == 0) by_warp[threadIdx.x / 32] = value;
    __syncthreads();
    for (int warp = 0; warp < 8; ++warp) x[2 * threadIdx.x + turn] += by_warp[warp];
}
"""


def test_a_warp_that_overtakes_the_readers_is_seen(tmp_path: Path):
    path = one_line(tmp_path, OVERTAKING)
    found: dict[bool, list[bool]] = {True: [], False: []}
    for seed in range(6):
        for barrier in found:
            x = torch.zeros(256, 2)
            defines = {"BARRIER": 1} if barrier else {}
            run_on_host(path, "run", 1, 256, (x, np.int32(0)), defines=defines, seed=seed)
            found[barrier].append(x.unique(dim=0).tolist() == [[0.0, 256.0]])
    assert all(found[True])
    assert not all(found[False])


def test_shared_memory_is_nan_until_it_is_written(tmp_path: Path):
    body = "__shared__ float own; extern __shared__ float given[]; x[2 * blockIdx.x] = own;"
    path = one_line(tmp_path, body + "x[2 * blockIdx.x + 1] = given[0]; own = given[0] = 1.0f;")
    x = torch.zeros(6)
    run_on_host(path, "run", 3, 1, (x, np.int32(0)), shared_bytes=4)
    assert x.isnan().all()


def test_indices_of_grid_and_block_in_three_dimensions(tmp_path: Path):
    body = """const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    x[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1.0f;"""
    x = torch.zeros(2 * 3 * 4 * 5 * 3 * 2)
    run_on_host(one_line(tmp_path, body), "run", (2, 3, 4), (5, 3, 2), (x, np.int32(0)))
    assert x.eq(1).all()


def test_blocks_come_in_the_order_of_the_seed(tmp_path: Path):
    path = one_line(tmp_path, "x[atomicAdd(&count[0], 1)] = blockIdx.x;", "float* x, int* count")
    orders = []
    for seed in (1, 1, 2):
        x, count = torch.full((20,), -1.0), torch.zeros(1, dtype=torch.int32)
        run_on_host(path, "run", 20, 1, (x, count), seed=seed)
        assert sorted(x.tolist()) == list(range(20))
        orders.append(x.tolist())
    assert orders[0] == orders[1] != orders[2]


SHUFFLES = [
    ("__shfl_xor_sync(~0u, i, 5)", [i ^ 5 for i in range(32)]),
    ("__shfl_xor_sync(~0u, i, 4, 4)", [min(i, i ^ 4) for i in range(32)]),
    ("__shfl_down_sync(~0u, i, 3)", [i + 3 if i + 3 < 32 else i for i in range(32)]),
    ("__shfl_down_sync(~0u, i, 3, 8)", [i + 3 if i % 8 + 3 < 8 else i for i in range(32)]),
    ("__shfl_up_sync(~0u, i, 3, 16)", [i - 3 if i % 16 >= 3 else i for i in range(32)]),
    ("__shfl_sync(~0u, i, 9, 8)", [i // 8 * 8 + 1 for i in range(32)]),
    ("i < 16 ? __shfl_down_sync(0xFFFFu, i, 1, 16) : 7.0f", [*range(1, 16), 15, *[7] * 16]),
    ("__popc(__ballot_sync(~0u, threadIdx.x % 3 == 0))", [11] * 32),
    ("__any_sync(~0u, i == 9) + 2 * __all_sync(~0u, i < 31)", [1] * 32),
]


def test_warp_intrinsics(tmp_path: Path):
    lines = "".join(f"x[{64 * row} + threadIdx.x] = {expression};\n" for row, (expression, _) in enumerate(SHUFFLES))
    x = torch.zeros(len(SHUFFLES), 64)
    run_on_host(one_line(tmp_path, f"const float i = threadIdx.x % 32;\n{lines}"), "run", 1, 64, (x, np.int32(0)))
    for row, (expression, expected) in zip(x.tolist(), SHUFFLES, strict=True):
        assert row == [float(value) for value in expected] * 2, expression


FAULTS = [
    ("if (threadIdx.x == 5) x[n] = 1.0f;", "wrote outside an array"),
    ("if (threadIdx.x == 5) x[-2] = 1.0f;", "wrote outside an array"),
    ("if (threadIdx.x == 5) x[n + 5000] = 1.0f;", r"block \(\d, 0, 0\), thread 5: address outside every array"),
    ("x[0] = x[-5000];", "address outside every array"),
    ("*reinterpret_cast<float4*>(x + 1) = make_float4(1, 2, 3, 4);", "misaligned access"),
    ("__shared__ float t[8]; t[threadIdx.x] = x[0]; x[0] = t[n - 64];", r"thread \d+: misaligned access, index"),
    ("extern __shared__ float t[]; t[threadIdx.x] = 1.0f;", "past the 64 of dynamic shared memory"),
    ("if (threadIdx.x < 40) __syncthreads();", r"thread \d+ waits at line \d+ for thread \d+, which has ended"),
    ("if (threadIdx.x < 40)\n__syncthreads();\nelse\n__syncthreads();", r"waits at line \d+, thread \d+ at line \d+"),
    ("if (threadIdx.x < 8) x[0] = __shfl_xor_sync(~0u, 1.0f, 1);", r"which has ended"),
    ("if (threadIdx.x) x[0] = __shfl_xor_sync(1u, 1.0f, 1);", "is not in its own mask"),
    ("if (threadIdx.x % 2) __syncwarp(); else __syncthreads();", r"waits at line \d+ for ever"),
    ("x[0] = n / (n - 64);", "division by zero"),
    ("x[0] = n << (n - 30);", "overflow"),
]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One source with a kernel for each fault, and one that is sound."""
    bodies = ["x[0] = 3.0f;", *(body for body, _ in FAULTS)]
    kernels = [f'extern "C" __global__ void run{n}(float* x, int n) {{\n{body}\n}}\n' for n, body in enumerate(bodies)]
    return source(tmp_path_factory.mktemp("faulty"), "".join(kernels))


@pytest.mark.parametrize(("number", "message"), [(n + 1, message) for n, (_, message) in enumerate(FAULTS)])
def test_what_a_device_would_not_define_is_a_fault(faulty: str, number: int, message: str):
    x = torch.zeros(64)
    with pytest.raises(Fault, match=message):
        run_on_host(faulty, f"run{number}", 2, 64, (x, np.int32(64)), shared_bytes=64)
    run_on_host(faulty, "run0", 1, 1, (x, np.int32(64)))  # and nothing is left of it
    assert x[0] == 3.0


def test_a_read_just_outside_an_array_gives_nan(tmp_path: Path):
    x = torch.zeros(64)
    run_on_host(one_line(tmp_path, "x[0] = x[n]; x[1] = x[-1];"), "run", 1, 1, (x, np.int32(64)))
    assert x[:2].isnan().all()


def special_values() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator, dtype=torch.int64).to(torch.int32)
    near_half = torch.linspace(-70_000, 70_000, 50_001)
    small = torch.linspace(-(2.0**-13), 2.0**-13, 50_001)
    every_half = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    ties = every_half * (1 + 2.0**-11)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 65519.99, 65520.0, 3.4e38, 1e-45])
    return torch.cat([bits.view(torch.float32), near_half, small, every_half, ties, special])


@pytest.mark.parametrize(
    ("dtype", "header", "to", "back"),
    [
        (torch.bfloat16, "cuda_bf16.h", "__float2bfloat16", "__bfloat162float"),
        (torch.float16, "cuda_fp16.h", "__float2half", "__half2float"),
    ],
)
def test_half_conversions_round_as_torch_does(tmp_path: Path, dtype: torch.dtype, header: str, to: str, back: str):
    kind = "__nv_bfloat16" if dtype == torch.bfloat16 else "__half"
    body = f"for (int i = threadIdx.x; i < n; i += blockDim.x) h[i] = {to}(x[i]), y[i] = {back}(h[i]);"
    text = f'extern "C" __global__ void run(const float* x, {kind}* h, float* y, int n) {{ {body} }}'
    x = special_values()
    h, y = torch.zeros(len(x), dtype=dtype), torch.zeros(len(x))
    run_on_host(source(tmp_path, f"#include <{header}>\n{text}"), "run", 1, 32, (x, h, y, np.int32(len(x))))
    true = x.to(dtype)
    assert torch.equal(h.isnan(), true.isnan())
    assert torch.equal(h.view(torch.int16)[~true.isnan()], true.view(torch.int16)[~true.isnan()])
    assert torch.equal(y[~true.isnan()], true.float()[~true.isnan()])


def test_a_guarded_tensor_is_used_where_it_is(tmp_path: Path):
    path = one_line(tmp_path, "*(float*)address = 5.0f; x[0] = 1.0f;", "float* x, long long address")
    odd = guarded(torch.zeros(3), shift=4)
    rows = guarded(torch.zeros(4, 6).T)
    assert (odd.data_ptr() % 16, rows.stride()) == (4, (1, 6))
    run_on_host(path, "run", 1, 1, (rows, np.int64(odd.data_ptr())))
    assert odd.tolist() == [5.0, 0.0, 0.0]
    assert rows[0, 0] == 1.0
    with pytest.raises(Fault, match="wrote outside an array"):
        run_on_host(path, "run", 1, 1, (rows, np.int64(odd.data_ptr() + 12)))


def test_a_structure_is_passed_by_value(tmp_path: Path):
    text = "struct Pair { long long a; int b[3]; };\n"
    text += 'extern "C" __global__ void run(const Pair pair, float* x) { x[0] = pair.a + pair.b[2]; }'
    pair = np.array([(1000, [0, 0, 7])], np.dtype([("a", "i8"), ("b", "i4", 3)], align=True))
    x = np.zeros(1, np.float32)
    run_on_host(source(tmp_path, text), "run", 1, 1, (pair.tobytes(), x))
    assert x[0] == 1007


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, 3), TypeError, r"got 3: write np.int32\(n\)"),
        ((None, np.int64(3)), TypeError, r"run takes \[8, 4\] bytes, got \[8, 8\]"),
        ((None,), TypeError, r"run takes \[8, 4\] bytes, got \[8\]"),
    ],
)
def test_arguments_are_those_of_the_kernel(
    tmp_path: Path, arguments: tuple[Any, ...], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        run_on_host(one_line(tmp_path, ""), "run", 1, 1, arguments)


def test_what_does_not_compile_or_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"(?s)does not compile for the host.*kernel.cu:2"):
        run_on_host(one_line(tmp_path, "x[0] = ;"), "run", 1, 1, (None, np.int32(0)))
    with pytest.raises(ValueError, match="has no kernel 'walk'"):
        run_on_host(one_line(tmp_path, ""), "walk", 1, 1, (None, np.int32(0)))
    with pytest.raises(FileNotFoundError, match=r"includes nowhere.cuh"):
        run_on_host(source(tmp_path, '#include "nowhere.cuh"\n'), "run", 1, 1, ())


def test_without_a_compiler_tests_are_skipped_but_not_in_ci(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for environment, outcome in (({}, pytest.skip.Exception), ({"CI": "true"}, pytest.fail.Exception)):
        monkeypatch.setattr(os, "environ", environment)
        with pytest.raises(outcome, match="need g"):
            build.compiler()
