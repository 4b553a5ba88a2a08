"""From a CUDA source in this package to machine code for one architecture, by NVRTC, which needs no GPU."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from fastvicreg.errors import UserError
from fastvicreg.kernels.cuda import cache

KERNELS = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
"""What every kernel is tested to compile for: A100, H100 and H200, B200, RTX 50; others from sm_80 on compile alike."""

OLDEST = 8  # bfloat16 in hardware, asynchronous copies
INSTALL = "pip install cuda-core 'cuda-bindings==13.*' nvidia-cuda-nvrtc nvidia-cuda-runtime"
STANDARD = "c++17"
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
CUDA_VERSION = re.compile(r"^#define CUDA_VERSION (\d+)", re.MULTILINE)
ELF = b"\x7fELF"
ENTRY = re.compile(r"Compiling entry function '(\w+)'")
FIGURES = {
    "stack_bytes": re.compile(r"(\d+) bytes stack frame"),
    "spill_store_bytes": re.compile(r"(\d+) bytes spill stores"),
    "spill_load_bytes": re.compile(r"(\d+) bytes spill loads"),
    "registers": re.compile(r"Used (\d+) registers"),
    "shared_bytes": re.compile(r"(\d+) bytes smem"),
}


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a multiprocessor: registers and local memory a thread, static shared memory a block."""

    registers: int = 0
    stack_bytes: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True)
class Cubin:
    """Machine code of one source file for one architecture; ``usage`` by kernel name, as the assembler reported it."""

    source: str
    arch: str
    code: bytes = field(repr=False)
    usage: Mapping[str, Usage]


def missing() -> str:
    """Which part of the CUDA toolchain is not installed, and the command that adds it; "" where all of it is."""
    try:
        _toolchain()
    except UserError as error:
        return str(error)
    return ""


def compile_cubin(source: str, arch: str, *, defines: Mapping[str, str | int] | None = None) -> Cubin:
    """Compile ``source``, a path below ``kernels/`` such as "lars/lars.cu", for an architecture such as "sm_90".

    ``defines`` are preprocessor macros. Files included in quotes are found beside the source and below ``kernels/``.
    The result is kept on disk, by source, included files, options, architecture and compiler version.

    Raises ``UserError`` where the toolchain is not installed, or ``arch`` is below sm_80 or unknown to it, and
    ``RuntimeError`` with the compiler's log where the source does not compile.
    """
    number = re.fullmatch(r"sm_(\d+)[af]?", arch)
    if number is None or int(number[1]) < 10 * OLDEST:
        raise UserError(f"no CUDA kernels for architecture {arch!r}: they need sm_80 (A100) or later.")
    version, headers = _toolchain()
    macros = tuple((name, str(value)) for name, value in sorted((defines or {}).items()))
    digest = hashlib.sha256(repr((version, _header_version(headers), STANDARD, arch, macros)).encode())
    for text in _texts(KERNELS / source):
        digest.update(hashlib.sha256(text.encode()).digest())
    name = f"{Path(source).stem}-{arch}-{digest.hexdigest()[:32]}.cubin"
    kept = cache.read(name)
    if kept is None or ELF not in kept:  # a file cut short by a full disk holds no code
        kept = _compile(source, arch, macros, headers)
        cache.write(name, kept)
    usage, _, code = kept.partition(b"\n")
    return Cubin(source, arch, code, {entry: Usage(**figures) for entry, figures in json.loads(usage).items()})


def _compile(source: str, arch: str, macros: tuple[tuple[str, str], ...], headers: Path) -> bytes:
    """One line of JSON, the usage by kernel, then the machine code: one file on disk, so that both appear together."""
    core, path, log = import_module("cuda.core"), KERNELS / source, io.StringIO()
    options = core.ProgramOptions(
        name=path.name,
        arch=arch,
        std=STANDARD,
        ptxas_options=["-v"],
        include_path=[str(folder) for folder in (path.parent, KERNELS, headers)],
        define_macro=list(macros) or None,
    )
    try:
        code = core.Program(path.read_text(), "c++", options).compile("cubin", logs=log).code
    except Exception as error:
        if "gpu-architecture" in str(error):
            raise UserError(f"this NVRTC does not know {arch!r}: pip install --upgrade nvidia-cuda-nvrtc") from error
        raise RuntimeError(f"{source} does not compile for {arch}: {error}") from error
    return json.dumps(_usage(log.getvalue())).encode() + b"\n" + bytes(code)


def _usage(log: str) -> dict[str, dict[str, int]]:
    """Figures by kernel from the assembler's report: an "entry function" line opens each kernel's own."""
    usage: dict[str, dict[str, int]] = {}
    entry = ""
    for line in log.splitlines():
        if found := ENTRY.search(line):
            entry = found[1]
            usage[entry] = {}
        if entry:
            usage[entry] |= {name: int(found[1]) for name, figure in FIGURES.items() if (found := figure.search(line))}
    if not usage or any("registers" not in figures for figures in usage.values()):
        raise RuntimeError(f"the assembler's report names no kernel and its registers: {log!r}")
    return usage


def _texts(path: Path) -> list[str]:
    """The source and, in order, every file of this package that it includes."""
    texts: list[str] = []
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop(0)
        if file in seen:
            continue
        seen.add(file)
        texts.append(file.read_text())
        for name in INCLUDE.findall(texts[-1]):
            found = [folder / name for folder in (file.parent, KERNELS) if (folder / name).is_file()]
            waiting.extend(folder.resolve() for folder in found[:1])
    return texts


@functools.cache
def _toolchain() -> tuple[tuple[int, int], Path]:
    """NVRTC's version and the folder of CUDA's headers; ``UserError`` where a part is not installed."""
    try:
        pathfinder, nvrtc = import_module("cuda.pathfinder"), import_module("cuda.bindings.nvrtc")
        import_module("cuda.core")
    except ImportError as error:
        raise UserError(f"the CUDA kernels need cuda-core and cuda-bindings ({error}): {INSTALL}") from error
    try:
        result, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # the loader's own class differs between versions
        raise UserError(f"the CUDA kernels need NVRTC ({type(error).__name__}): {INSTALL}") from error
    folder = pathfinder.find_nvidia_header_directory("cudart")
    if int(result) or folder is None:
        raise UserError(f"the CUDA kernels need CUDA's headers (cuda_bf16.h): {INSTALL}")
    return (major, minor), Path(folder)


def _header_version(folder: Path) -> str:
    found = CUDA_VERSION.search((folder / "cuda.h").read_text())
    return found[1] if found else ""
