"""The CUDA binding: what compiles without a GPU, and what is kept of it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvrtc import require_compiler
from toolchains import assert_no_spills

from fastvicreg import caches
from fastvicreg.errors import UserError
from fastvicreg.kernels.cuda import ARCHITECTURES, Cubin, build, cache, compile_cubin, compiler, cubin

SOURCES = sorted(str(path.relative_to(cubin.KERNELS)) for path in cubin.KERNELS.rglob("*.cu"))

DOUBLE = """
#include <cuda_bf16.h>
#include "twice.cuh"
#ifndef ROOM
#define ROOM 32
#endif
extern "C" __global__ void doubled(const float* x, float* y, long long n, float shift) {
    __shared__ float tile[ROOM];
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    tile[threadIdx.x % ROOM] = i < n ? twice(x[i]) + shift : 0.0f;
    __syncthreads();
    if (i < n) y[i] = tile[threadIdx.x % ROOM];
}
"""
TWICE = "__device__ inline float twice(float x) { return 2.0f * x; }\n"


@pytest.fixture(autouse=True)
def toolchain() -> None:
    require_compiler()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for compiled code."""
    monkeypatch.setattr(caches, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "fastvicreg" / "cubins"


@pytest.fixture
def source(tmp_path: Path, own_cache: Path) -> str:
    (tmp_path / "twice.cuh").write_text(TWICE)
    (tmp_path / "double.cu").write_text(DOUBLE)
    return str(tmp_path / "double.cu")


def test_every_source_has_variants():
    assert "lars/lars.cu" in SOURCES
    assert {variant.source for variant in build.variants()} == set(SOURCES)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("path", SOURCES)
def test_every_kernel_compiles_for_every_architecture_without_spills(path: str, arch: str):
    for defines in (defines for source, defines in build.variants() if source == path):
        compiled = compile_cubin(path, arch, defines=defines)
        assert compiled.code.startswith(b"\x7fELF")
        assert compiled.usage
        for name, usage in compiled.usage.items():
            assert 0 < usage.registers <= 255
            assert_no_spills(usage, f"{name} {defines}")


def test_spills_would_be_seen(tmp_path: Path, own_cache: Path):
    loads = "".join(f"float a{n} = x[{n} * 997 + i];\n" for n in range(120))
    sums = " + ".join(f"a{n} * a{(n * 7 + 3) % 120}" for n in range(120))
    body = f"{loads} __syncthreads(); y[i] = {sums};"
    (tmp_path / "crowded.cu").write_text(
        'extern "C" __global__ void __launch_bounds__(1024, 2) crowded(const volatile float* x, float* y) {\n'
        f"const int i = threadIdx.x;\n{body}\n}}\n"
    )
    usage = compile_cubin(str(tmp_path / "crowded.cu"), "sm_90").usage["crowded"]
    assert usage.spill_store_bytes > 0
    assert usage.spill_load_bytes > 0
    assert usage.registers == 32


def test_usage_is_what_the_source_takes(source: str):
    usage = compile_cubin(source, "sm_90", defines={"ROOM": 64}).usage
    assert set(usage) == {"doubled"}
    assert usage["doubled"].shared_bytes == 256
    assert usage["doubled"].stack_bytes == 0


def test_code_is_compiled_once_and_again_when_anything_changed(
    source: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled = []
    real = compiler.compile_source

    def counted(*arguments: Any) -> Cubin:
        compiled.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(compiler, "compile_source", counted)
    first = compile_cubin(source, "sm_90")
    assert compile_cubin(source, "sm_90") == first
    assert len(compiled) == 1
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o700
    assert [path.suffix for path in own_cache.iterdir()] == [".cubin"]

    compile_cubin(source, "sm_80")
    compile_cubin(source, "sm_90", defines={"ROOM": 64})
    Path(source).with_name("twice.cuh").write_text(TWICE.replace("2.0f", "3.0f"))
    assert compile_cubin(source, "sm_90").code != first.code
    assert len(compiled) == 4

    for path in own_cache.iterdir():
        path.write_bytes(path.read_bytes()[:40])  # a full disk
    assert compile_cubin(source, "sm_80").code.startswith(b"\x7fELF")
    assert len(compiled) == 5


def test_a_cache_that_others_may_write_is_refused(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    cache.write("kept", b"code")
    assert cache.read("kept") == b"code"
    assert cache.read("other") is None
    own_cache.chmod(0o770)
    with pytest.raises(UserError, match="can be written by other users: chmod 700"):
        cache.read("kept")
    own_cache.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: own_cache.stat().st_uid + 1)
    with pytest.raises(UserError, match="belongs to user"):
        cache.read("kept")


def test_a_cache_that_is_a_link_or_cannot_be_made_is_refused(own_cache: Path, tmp_path: Path):
    own_cache.parent.mkdir(parents=True)
    own_cache.symlink_to(tmp_path)
    with pytest.raises(UserError, match="is no directory of its own"):
        cache.directory()
    own_cache.unlink()
    own_cache.write_text("")
    with pytest.raises(UserError, match=r"cannot keep compiled kernels in .*set XDG_CACHE_HOME"):
        cache.directory()


@pytest.mark.parametrize("arch", ["sm_75", "sm_7", "90", "compute_90"])
def test_an_architecture_without_kernels_is_named(arch: str):
    with pytest.raises(UserError, match=f"'{arch}': they need sm_80"):
        compile_cubin("lars/lars.cu", arch)


def test_an_architecture_that_the_compiler_does_not_know_is_named(own_cache: Path):
    with pytest.raises(UserError, match="does not know 'sm_999': pip install --upgrade nvidia-cuda-nvrtc"):
        compile_cubin("lars/lars.cu", "sm_999")


def test_a_source_that_does_not_compile_tells_where(source: str, own_cache: Path):
    Path(source).write_text(DOUBLE.replace("const long long i", "const long lang i"))
    with pytest.raises(RuntimeError, match=r"(?s)does not compile for sm_90.*double.cu\(9\)"):
        compile_cubin(source, "sm_90")
    assert not list(own_cache.glob("*"))


@pytest.mark.parametrize("module", ["cuda.core", "cuda.bindings.nvrtc", "cuda.pathfinder"])
def test_a_missing_toolchain_names_its_command(module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    compiler._toolchain.cache_clear()
    with pytest.raises(UserError, match=r"needs cuda-core and cuda-bindings .*: pip install cuda-core"):
        compile_cubin("lars/lars.cu", "sm_90")
    assert "pip install" in compiler.missing_compiler()


COMPILE_AT_ONCE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from fastvicreg.kernels.cuda import compile_cubin
sys.setswitchinterval(1e-5)
with ThreadPoolExecutor(4) as threads:
    cubins = threads.map(lambda room: compile_cubin(sys.argv[1], "sm_90", defines={"ROOM": room}), (32, 64, 96, 128))
print(*(cubin.usage["doubled"].shared_bytes for cubin in cubins))
"""


def test_packages_older_than_what_is_asked_for_are_no_toolchain(monkeypatch: pytest.MonkeyPatch):
    """A GPU machine has those of its own torch; to ask them must not end what the wheel's code can run."""
    monkeypatch.setattr(compiler, "import_module", lambda name: SimpleNamespace(__name__=name))
    compiler._toolchain.cache_clear()
    try:
        assert "no attribute 'find_nvidia_header_directory'" in compiler.missing_compiler()
    finally:
        compiler._toolchain.cache_clear()


@pytest.mark.slow
def test_threads_may_compile_at_once(source: str, tmp_path: Path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "own")}
    command = [sys.executable, "-c", COMPILE_AT_ONCE, source]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.stdout == "128 256 384 512\n", ran.stderr
