"""From a CUDA source in this package to machine code for one architecture, by NVRTC, which needs no GPU."""

from __future__ import annotations

import functools
import hashlib
import io
import re
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

from fastvicreg.errors import UserError
from fastvicreg.kernels.cuda import cache
from fastvicreg.kernels.cuda.cubin import (
    KERNELS,
    OPTIONS,
    Cubin,
    Defines,
    Usage,
    check_architecture,
    file_name,
    identity,
    macros,
    unpacked,
)

INSTALL = "pip install cuda-core 'cuda-bindings==13.*' nvidia-cuda-nvrtc nvidia-cuda-runtime"
IMPORTING = threading.Lock()
CUDA_VERSION = re.compile(r"^#define CUDA_VERSION (\d+)", re.MULTILINE)
ENTRY = re.compile(r"Compiling entry function '(\w+)'")
FIGURES = {
    "stack_bytes": re.compile(r"(\d+) bytes stack frame"),
    "spill_store_bytes": re.compile(r"(\d+) bytes spill stores"),
    "spill_load_bytes": re.compile(r"(\d+) bytes spill loads"),
    "registers": re.compile(r"Used (\d+) registers"),
    "shared_bytes": re.compile(r"(\d+) bytes smem"),
}


def cuda_core() -> Any:
    """The module ``cuda.core``, whose import is not safe in two threads at once; ``ImportError`` without it."""
    with IMPORTING:
        return import_module("cuda.core")


def missing_compiler() -> str:
    """Which part of the CUDA toolchain is not installed, and the command that adds it; "" where all of it is."""
    try:
        _toolchain()
    except UserError as error:
        return str(error)
    return ""


def compiler_version() -> tuple[int, int]:
    """NVRTC's, which is CUDA's; ``UserError`` where it is not installed."""
    return _toolchain()[0]


def compile_cubin(source: str, arch: str, *, defines: Defines | None = None) -> Cubin:
    """Compile ``source``, a path below ``kernels/`` such as "lars/lars.cu", for an architecture such as "sm_90".

    ``defines`` are preprocessor macros. Files included in quotes are found beside the source and below ``kernels/``.
    The result is kept on disk, by source, included files, options, architecture and compiler version.

    Raises ``UserError`` where the toolchain is not installed, or ``arch`` is below sm_80 or unknown to it, and
    ``RuntimeError`` with the compiler's log where the source does not compile.
    """
    check_architecture(arch)
    defines = defines or {}
    version, headers = _toolchain()
    made_of = (identity(source, arch, defines), version, _header_version(headers))
    name = file_name(source, arch, hashlib.sha256(repr(made_of).encode()).hexdigest()[:32])
    kept = cache.read(name)
    if kept is not None and (cubin := unpacked(kept, source, arch)) is not None:
        return cubin
    cubin = compile_source(source, arch, defines, headers)
    cache.write(name, cubin.packed())
    return cubin


def compile_source(source: str, arch: str, defines: Defines, headers: Path) -> Cubin:
    """Compile a file of ``KERNELS`` by NVRTC, whatever is in the cache."""
    core, path, log = cuda_core(), KERNELS / source, io.StringIO()
    options = core.ProgramOptions(
        name=path.name,
        arch=arch,
        include_path=[str(folder) for folder in (path.parent, KERNELS, headers)],
        define_macro=macros(defines) or None,
        **OPTIONS,
    )
    try:
        code = core.Program(path.read_text(), "c++", options).compile("cubin", logs=log).code
    except Exception as error:
        if "gpu-architecture" in str(error):
            raise UserError(f"this NVRTC does not know {arch!r}: pip install --upgrade nvidia-cuda-nvrtc") from error
        raise RuntimeError(f"{source} does not compile for {arch}: {error}") from error
    return Cubin(source, arch, bytes(code), _usage(log.getvalue()))


def _usage(log: str) -> dict[str, Usage]:
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
    return {name: Usage(**figures) for name, figures in usage.items()}


@functools.cache
def _toolchain() -> tuple[tuple[int, int], Path]:
    """NVRTC's version and the folder of CUDA's headers; ``UserError`` where a part is not installed."""
    try:
        pathfinder, nvrtc = import_module("cuda.pathfinder"), import_module("cuda.bindings.nvrtc")
        header_directory = pathfinder.find_nvidia_header_directory
        cuda_core()
    except (ImportError, AttributeError) as error:  # the latter of packages older than what is asked for
        raise UserError(f"compiling CUDA kernels needs cuda-core and cuda-bindings ({error}): {INSTALL}") from error
    try:
        result, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # the loader's own class differs between versions
        raise UserError(f"compiling CUDA kernels needs NVRTC ({type(error).__name__}): {INSTALL}") from error
    folder = header_directory("cudart")
    if int(result) or folder is None:
        raise UserError(f"compiling CUDA kernels needs CUDA's headers (cuda_bf16.h): {INSTALL}")
    return (major, minor), Path(folder)


def _header_version(folder: Path) -> str:
    found = CUDA_VERSION.search((folder / "cuda.h").read_text())
    return found[1] if found else ""
