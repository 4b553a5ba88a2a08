"""Launches: what they hand to the driver, what they refuse, and that they run on a GPU where there is one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nvrtc import require_compiler
from simt import build

from fastvicreg.errors import UserError
from fastvicreg.kernels.cuda import Cubin, Launcher, Usage, kernel
from fastvicreg.kernels.cuda import launch as launching

DOUBLED = """
extern "C" __global__ void doubled(const float* x, float* y, long long n, float shift) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2.0f * x[i] + shift;
}
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    require_compiler()
    (tmp_path / "double.cu").write_text(DOUBLED)
    return str(tmp_path / "double.cu")


def test_no_device_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match="torch finds none: fastvicreg doctor"):
            kernel("lars/lars.cu", "lars_apply", device=device)
    with pytest.raises(ValueError, match="not on cpu"):
        kernel("lars/lars.cu", "lars_apply", device="cpu")
    assert "torch finds none" in launching.obstacle()


def test_an_old_device_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "V100")
    assert launching.obstacle() == "the CUDA kernels need sm_80 (A100) or later, V100 is sm_70"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A driver that notes its launches: each argument's bytes, read from the addresses as the real one reads them."""
    sizes = (8, 4, 8, 4, 12)
    launches: list[tuple[Any, ...]] = []

    def launch(function: int, *rest: Any) -> tuple[int]:
        *extents, shared, stream, addresses, extra = rest
        pointers = (ctypes.c_uint64 * len(sizes)).from_address(addresses)
        values = [ctypes.string_at(pointer, size) for pointer, size in zip(pointers, sizes, strict=True)]
        launches.append((function, extents, shared, stream, values, extra))
        return (0,)

    names = {"CUfunction": int, "CUstream": int, "CUdevice": int, "cuLaunchKernel": launch, "launches": launches}
    attributes = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    limit = {"cuKernelSetAttribute": lambda *arguments: (int(arguments[1] > 200_000),)}
    fake = SimpleNamespace(**names, **limit, CUfunction_attribute=attributes, sizes=sizes)
    monkeypatch.setattr(launching, "import_module", lambda name: fake)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a device")
    return fake


def a_launcher(driver: SimpleNamespace) -> Launcher:
    loaded = SimpleNamespace(handle=5, arguments_info=[SimpleNamespace(size=size) for size in driver.sizes])
    return Launcher("doubled", loaded, Usage(shared_bytes=1024), 0)


def test_a_launch_hands_every_argument_over_by_its_bytes(driver: SimpleNamespace):
    arguments = (None, np.int32(-3), np.int64(1 << 40), 0.1, b"twelve bytes")
    a_launcher(driver)((4, 5), 128, *arguments, shared_bytes=9)
    ((function, extents, shared, stream, values, extra),) = driver.launches
    assert (function, extents, shared, stream, extra) == (5, [4, 5, 1, 128, 1, 1], 9, 77, 0)
    assert values[0] == bytes(8)
    assert np.frombuffer(values[1], np.int32) == -3
    assert np.frombuffer(values[2], np.int64) == 1 << 40
    assert np.frombuffer(values[3], np.float32) == np.float32(0.1)
    assert values[4] == b"twelve bytes"


@pytest.mark.parametrize(
    ("place", "wrong", "error", "message"),
    [
        (1, 3, TypeError, r"got 3: write np.int32\(n\)"),
        (1, True, TypeError, "got True"),
        (1, np.int64(3), ValueError, r"takes arguments of \(8, 4, 8, 4, 12\) bytes, got \(8, 8, 8, 4, 12\)"),
        (0, torch.ones(2), ValueError, "runs on cuda:0, got a tensor on cpu"),
    ],
)
def test_an_argument_that_the_kernel_does_not_take_is_refused(
    driver: SimpleNamespace, place: int, wrong: Any, error: type[Exception], message: str
):
    arguments: list[Any] = [None, np.int32(-3), np.int64(1), 0.1, b"twelve bytes"]
    arguments[place] = wrong
    with pytest.raises(error, match=message):
        a_launcher(driver)(1, 32, *arguments)
    assert not driver.launches


def test_a_thread_without_a_context_gets_one(driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    current: list[int] = []
    accept = driver.cuLaunchKernel
    driver.cuLaunchKernel = lambda *arguments: accept(*arguments) if current else (launching.NO_CONTEXT,)
    core = SimpleNamespace(Device=lambda index: SimpleNamespace(set_current=lambda: current.append(index)))
    monkeypatch.setattr(launching, "cuda_core", lambda: core)
    a_launcher(driver)(1, 32, None, np.int32(-3), np.int64(1), 0.1, b"twelve bytes")
    assert len(driver.launches) == 1
    driver.cuLaunchKernel = lambda *arguments: (launching.NO_CONTEXT,)
    with pytest.raises(RuntimeError, match="doubled was not launched, grid 1, block 32: 201"):
        a_launcher(driver)(1, 32, None, np.int32(-3), np.int64(1), 0.1, b"twelve bytes")
    assert current == [0, 0]


def test_more_shared_memory_than_the_device_has_is_refused(driver: SimpleNamespace):
    launcher = a_launcher(driver)
    arguments = (None, np.int32(-3), np.int64(1), 0.1, b"twelve bytes")
    launcher(1, 32, *arguments, shared_bytes=100_000)
    with pytest.raises(ValueError, match="doubled asks for 300000 bytes of shared memory a block; a device has less"):
        launcher(1, 32, *arguments, shared_bytes=300_000)
    assert len(driver.launches) == 1


@pytest.mark.parametrize(("compiler", "loads"), [(True, True), (True, False), (False, True)])
def test_prebuilt_code_that_the_driver_refuses_is_compiled_here(
    driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, compiler: bool, loads: bool
):
    def entry(cubin: Cubin, name: str) -> Any:
        if cubin.origin == "prebuilt" or not loads:
            raise RuntimeError("CUDA_ERROR_INVALID_IMAGE")
        return SimpleNamespace(handle=5, arguments_info=[])

    def cubin(origin: str, registers: int) -> Cubin:
        return Cubin("double.cu", "sm_90", b"", {"doubled": Usage(registers)}, origin)

    core = SimpleNamespace(Device=lambda index: SimpleNamespace(set_current=lambda: None))
    monkeypatch.setattr(launching, "cuda_core", lambda: core)
    monkeypatch.setattr(launching, "_compiled", lambda *arguments: cubin("prebuilt", 10))
    monkeypatch.setattr(launching, "_entry", entry)
    monkeypatch.setattr(launching, "missing_compiler", lambda: "" if compiler else "no NVRTC")
    monkeypatch.setattr(launching, "compile_cubin", lambda *arguments, defines: cubin("compiled", 20))
    load = launching._load.__wrapped__
    if compiler and loads:
        assert load("double.cu", "doubled", (), 0).usage.registers == 20
        return
    with pytest.raises(UserError, match=r"does not load double\.cu for sm_90"):
        load("double.cu", "doubled", (), 0)


THROUGH_THE_STAND_IN = """
import contextlib, sys, types
import numpy as np, torch
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda index: (9, 0)
torch.cuda.device = lambda index: contextlib.nullcontext()
torch.cuda.current_stream = lambda index: types.SimpleNamespace(cuda_stream=0xABC)
from fastvicreg.kernels.cuda import kernel
launcher = kernel(sys.argv[1], "doubled", device="cuda:0")
launcher((7, 2), 32, None, None, np.int64(1 << 40), 0.25)
launcher(1, 32, None, None, np.int64(-1), 0.5, shared_bytes=100_000)
"""


@pytest.mark.slow
def test_the_installed_bindings_carry_a_launch_to_the_driver(source: str, tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("the real driver is tested")
    library = tmp_path / "libcuda.so.1"
    stand_in = Path(build.__file__).with_name("driver.cpp")
    subprocess.run([build.compiler(), "-shared", "-fPIC", "-w", str(stand_in), "-o", str(library)], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", THROUGH_THE_STAND_IN, source]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "load ELF",
        "kernel doubled",
        "launch 0x5678 grid 7 2 1 block 32 1 1 shared 0 stream 0xabc with (nil) (nil) 1099511627776 0.25",
        "set 8 to 100000 for 0x5678 on 0",
        "launch 0x5678 grid 1 1 1 block 32 1 1 shared 100000 stream 0xabc with (nil) (nil) -1 0.5",
    ]


@pytest.mark.gpu
def test_a_kernel_runs_on_the_current_stream(source: str):
    x = torch.arange(1000, dtype=torch.float32, device="cuda")
    y = torch.full_like(x, torch.nan)
    launcher = kernel(source, "doubled", device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        x.add_(1)
        launcher(-(-1000 // 32), 32, x, y, np.int64(1000), 0.5)
        total = y.sum()
    stream.synchronize()
    assert torch.equal(y, 2 * torch.arange(1, 1001, device="cuda") + 0.5)
    assert float(total) == 2 * 500500 + 500
    with pytest.raises(ValueError, match="takes arguments of"):
        launcher(1, 32, x, y, np.int32(1000), 0.5)
    with pytest.raises(ValueError, match="has no kernel 'tripled': its kernels are doubled"):
        kernel(source, "tripled", device="cuda")
