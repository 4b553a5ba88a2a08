"""Machine code that a wheel carries: which is found, for which device and source, and what works without a compiler."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nvrtc import require_compiler
from simt import build as host

from fastvicreg import caches, doctor
from fastvicreg.errors import UserError
from fastvicreg.kernels.cuda import (
    ARCHITECTURES,
    Variant,
    build,
    compile_cubin,
    compiler,
    cubin,
    machine_code,
    missing,
    prebuilt,
)

DOUBLE = """
#include "twice.cuh"
extern "C" __global__ void doubled(const float* x, float* y, long long n, float shift) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) y[i] = twice(x[i]) + shift;
}
"""
TWICE = "__device__ inline float twice(float x) { return FACTOR * x; }\n"
FACTOR = {"FACTOR": "2.0f"}
DEVICES = [(made_for, device) for made_for, devices in prebuilt.RUNS_ON.items() for device in devices]
NVRTC = "compiling CUDA kernels needs NVRTC"


@pytest.fixture(scope="module", autouse=True)
def toolchain() -> None:
    require_compiler()


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that a wheel carries."""
    path = tmp_path_factory.mktemp("wheel") / "cubins.zip"
    assert build.write(path, build.variants()) == len(build.variants()) * len(ARCHITECTURES)
    return path


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A source outside the package, its machine code in the archive; the compiler's directory is empty."""
    monkeypatch.setattr(caches, "user_cache_path", lambda name: tmp_path / "cache" / name)
    (tmp_path / "twice.cuh").write_text(TWICE)
    (tmp_path / "double.cu").write_text(DOUBLE)
    monkeypatch.setattr(prebuilt, "ARCHIVE", tmp_path / "cubins.zip")
    build.write(prebuilt.ARCHIVE, [Variant(str(tmp_path / "double.cu"), FACTOR)])
    return str(tmp_path / "double.cu")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """cuda-core and cuda-bindings are here, NVRTC's library is not."""

    def not_found() -> tuple[int, int, int]:
        raise RuntimeError("no libnvrtc")

    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", not_found)
    compiler._toolchain.cache_clear()
    yield
    compiler._toolchain.cache_clear()


def symbols_and_architecture(code: bytes) -> tuple[set[str], int]:
    """Kernels of an ELF file for CUDA, by the names of its sections of code, and the number of its architecture."""
    assert code[:5] == b"\x7fELF\x02"
    assert struct.unpack_from("<H", code, 18) == (190,)  # EM_CUDA
    (flags,) = struct.unpack_from("<I", code, 48)
    (table,) = struct.unpack_from("<Q", code, 40)
    size, count, names = struct.unpack_from("<HHH", code, 58)
    (text,) = struct.unpack_from("<Q", code, table + names * size + 24)
    starts = [text + struct.unpack_from("<I", code, table + section * size)[0] for section in range(count)]
    sections = [code[start : code.index(b"\0", start)].decode() for start in starts]
    return {name.removeprefix(".text.") for name in sections if name.startswith(".text.")}, flags >> 8 & 0xFF


@pytest.mark.parametrize(("made_for", "device"), DEVICES)
def test_every_variant_is_found_for_every_device(
    carried: Path, monkeypatch: pytest.MonkeyPatch, made_for: str, device: str
):
    monkeypatch.setattr(prebuilt, "ARCHIVE", carried)
    for source, defines in build.variants():
        found = machine_code(source, device, defines=defines)
        assert (found.origin, found.arch) == ("prebuilt", made_for)
        assert found == compile_cubin(source, made_for, defines=defines)
        assert symbols_and_architecture(found.code) == (set(found.usage), int(made_for.removeprefix("sm_")))


def test_code_runs_where_nvidia_promises_it():
    assert tuple(prebuilt.RUNS_ON) == ARCHITECTURES
    for made_for, device in DEVICES:
        (major, minor), (device_major, device_minor) = (
            divmod(int(arch.removeprefix("sm_")), 10) for arch in (made_for, device)
        )
        assert device_major == major
        assert device_minor >= minor
    assert len({device for _, device in DEVICES}) == len(DEVICES)


@pytest.mark.parametrize("device", ["sm_87", "sm_88", "sm_101", "sm_110", "sm_90a", "sm_100f"])
def test_another_device_is_the_compilers(carried: Path, monkeypatch: pytest.MonkeyPatch, device: str):
    monkeypatch.setattr(prebuilt, "ARCHIVE", carried)
    for source, defines in build.variants():
        assert prebuilt.find(source, device, defines) is None


def test_changed_source_includes_macros_or_options_are_compiled(source: str, monkeypatch: pytest.MonkeyPatch):
    def origin(**defines: str) -> str:
        return machine_code(source, "sm_90", defines={**FACTOR, **defines}).origin

    included = Path(source).with_name("twice.cuh")
    assert origin() == "prebuilt"
    assert origin(FACTOR="3.0f") == origin(MORE="1") == "compiled"
    assert machine_code(source, "sm_87", defines=FACTOR).origin == "compiled"
    included.write_text(TWICE.replace("x;", "x + 0 * x;"))
    assert origin() == "compiled"
    included.write_text(TWICE)
    assert origin() == "prebuilt"
    Path(source).write_text(DOUBLE.replace("+ shift", "- shift"))
    assert origin() == "compiled"
    Path(source).write_text(DOUBLE)
    monkeypatch.setitem(cubin.OPTIONS, "use_fast_math", True)
    assert origin() == "compiled"


def test_the_same_code_gives_the_same_bytes(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    variants = [Variant(source, {"FACTOR": f"{factor}.0f"}) for factor in range(4)]
    written = []
    for attempt in ("first", "second"):
        monkeypatch.setattr(caches, "user_cache_path", lambda name, attempt=attempt: tmp_path / attempt / name)
        random.Random(attempt).shuffle(variants)
        build.write(tmp_path / f"{attempt}.zip", variants)
        written.append((tmp_path / f"{attempt}.zip").read_bytes())
        with zipfile.ZipFile(tmp_path / f"{attempt}.zip") as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert written[0] == written[1]


def test_a_source_that_does_not_compile_leaves_no_archive(source: str, tmp_path: Path):
    with pytest.raises(RuntimeError, match="does not compile"):
        build.write(tmp_path / "other.zip", [Variant(source, {})])
    assert not (tmp_path / "other.zip").exists()


@pytest.mark.parametrize(("first", "damage"), [(-50, b""), (400, bytes(300)), (0, b"")])
def test_a_damaged_archive_is_named(source: str, first: int, damage: bytes):
    content = prebuilt.ARCHIVE.read_bytes()
    prebuilt.ARCHIVE.write_bytes(content[:first] + damage + (content[first + len(damage) :] if damage else b""))
    with pytest.raises(UserError, match=r"cannot read the prebuilt kernels in .*cubins.zip .*install fastvicreg anew"):
        prebuilt.find(source, "sm_100", FACTOR)


def test_a_variant_that_is_neither_prebuilt_nor_compiled_is_named(source: str, no_compiler: None):
    assert machine_code(source, "sm_90", defines=FACTOR).origin == "prebuilt"
    for arch, defines, named in (("sm_90", {"FACTOR": 3, "B": 1}, "B=1, FACTOR=3"), ("sm_87", {}, "no macros")):
        with pytest.raises(UserError) as refused:
            machine_code(source, arch, defines=defines)
        expected = rf"{source} with {named} is not prebuilt for {arch}; {NVRTC} \(RuntimeError\): pip install [^\n]+"
        assert re.fullmatch(expected, str(refused.value))
    with pytest.raises(UserError, match=r"^no CUDA kernels for architecture 'sm_75'"):
        machine_code(source, "sm_75")


def test_what_is_missing_depends_on_what_is_carried(
    carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_compiler: None
):
    monkeypatch.setattr(prebuilt, "ARCHIVE", carried)
    assert missing() == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, covered in (((8, 6), True), ((9, 0), True), ((8, 7), False), ((11, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=device: device)
        assert missing().startswith(NVRTC) is not covered
        assert (missing() == "") is covered
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    assert missing().endswith(f": {prebuilt.INSTALL_BINDINGS}")
    monkeypatch.setattr(prebuilt, "ARCHIVE", tmp_path / "none.zip")
    assert missing().endswith(f": {compiler.INSTALL}")


def test_a_driver_for_an_older_cuda_takes_what_the_compiler_makes(
    source: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    needed = compiler.compiler_version()[0]
    monkeypatch.setattr(prebuilt, "driver_version", lambda: needed + 1)
    assert machine_code(source, "sm_90", defines=FACTOR).origin == "prebuilt"
    monkeypatch.setattr(prebuilt, "driver_version", lambda: needed - 1)
    assert machine_code(source, "sm_90", defines=FACTOR).origin == "compiled"
    assert missing() == ""
    request.getfixturevalue("no_compiler")
    told = f"the prebuilt kernels need a driver for CUDA {needed}, this one is for CUDA {needed - 1}; {NVRTC}"
    assert missing().startswith(told)
    with pytest.raises(UserError, match=f"^{told}"):
        machine_code(source, "sm_90", defines=FACTOR)
    with pytest.raises(UserError, match=f"this one is for CUDA {needed - 1}: kernels are compiled at first use"):
        prebuilt.summary()


def test_with_a_compiler_nothing_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prebuilt, "ARCHIVE", tmp_path / "none.zip")
    assert missing() == ""
    with pytest.raises(UserError, match="carries no machine code: kernels are compiled at first use"):
        prebuilt.summary()


def test_doctor_tells_what_is_carried_and_what_compiles(
    carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    def works() -> dict[str, bool]:
        findings = doctor.cuda_findings()
        assert all((finding.works or finding.remedy) and not finding.needed for finding in findings)
        return {finding.name: finding.works for finding in findings}

    monkeypatch.setattr(prebuilt, "ARCHIVE", tmp_path / "none.zip")
    assert works() == {"bindings": True, "prebuilt": False, "compiler": True}
    monkeypatch.setattr(prebuilt, "ARCHIVE", carried)
    request.getfixturevalue("no_compiler")
    assert works() == {"bindings": True, "prebuilt": True, "compiler": False}
    count = len(build.variants())
    assert all(f"{arch} ({count})" in prebuilt.summary() for arch in ARCHITECTURES)


WITHOUT_NVRTC = """
import contextlib, logging, sys, types
from pathlib import Path
import cuda.pathfinder
def hidden(name, *rest, find=cuda.pathfinder.load_nvidia_dynamic_lib):
    if name == "nvrtc":
        raise cuda.pathfinder.DynamicLibNotFoundError(name)
    return find(name, *rest)
cuda.pathfinder.load_nvidia_dynamic_lib = hidden
cuda.pathfinder.find_nvidia_header_directory = lambda name: None
import numpy as np, torch
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda index=0: (8, 6)
torch.cuda.device = lambda index: contextlib.nullcontext()
torch.cuda.current_stream = lambda index: types.SimpleNamespace(cuda_stream=0xABC)
from fastvicreg.kernels.cuda import compiler, kernel, obstacle, prebuilt
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
prebuilt.ARCHIVE = Path(sys.argv[2])
print(compiler.missing_compiler().partition(" (")[0])
print(repr(obstacle()))
launcher = kernel(sys.argv[1], "doubled", defines={"FACTOR": "2.0f"}, device="cuda:0")
sys.stdout.flush()
launcher((7, 2), 32, None, None, np.int64(1 << 40), 0.25)
"""


def test_without_nvrtc_the_installed_bindings_carry_a_launch_to_the_driver(source: str, tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("the real driver is tested")
    stand_in = Path(host.__file__).with_name("driver.cpp")
    library = tmp_path / "libcuda.so.1"
    subprocess.run([host.compiler(), "-shared", "-fPIC", "-w", str(stand_in), "-o", str(library)], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-c", WITHOUT_NVRTC, source, str(prebuilt.ARCHIVE)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        NVRTC,
        "''",
        f"CUDA kernels of {source}, prebuilt for sm_80, on cuda:0: doubled",
        "load ELF",
        "kernel doubled",
        "launch 0x5678 grid 7 2 1 block 32 1 1 shared 0 stream 0xabc with (nil) (nil) 1099511627776 0.25",
    ]
    assert not (tmp_path / "empty").exists()
