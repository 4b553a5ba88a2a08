"""A CUDA source made into a host library: its own text, but for the declarations of dynamic shared memory."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from fastvicreg.kernels.cuda.compiler import KERNELS

SIMT = Path(__file__).resolve().parent
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)".*$', re.MULTILINE)
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w\s]+?)\s+(\w+)\s*\[\s*\]\s*;")
ENTRY = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(")
OPTIONS = (
    *("-std=c++17", "-O1", "-g1", "-shared", "-fPIC", "-w", "-ffp-contract=off", "-fno-weak", "-fno-strict-aliasing"),
    # Both check stacks, which coroutines switch.
    *("-U_FORTIFY_SOURCE", "-fno-stack-protector"),
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
)


def compiler() -> str:
    """The host compiler; without one the test is skipped, and fails where CI is set."""
    found = shutil.which("g++")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("kernels run on the host need g++: apt-get install g++")
        raise AssertionError("pytest.skip and pytest.fail raise")
    return found


def library(source: Path, defines: tuple[tuple[str, str], ...]) -> ctypes.CDLL:
    """``source`` compiled with these macros; ``RuntimeError`` with the messages where it does not compile."""
    text = flattened(source, set())
    exports = "".join(f"SIMT_EXPORT({name})\n" for name in dict.fromkeys(ENTRY.findall(text)))
    return _built(f'#include "simt.h"\n{text}\n{exports}', source.name, defines)


@functools.cache
def _built(text: str, source: str, defines: tuple[tuple[str, str], ...]) -> ctypes.CDLL:
    name = hashlib.sha256(repr((text, defines)).encode()).hexdigest()[:16]
    folder = Path(_folder().name)
    code, built = folder / f"{name}.cpp", folder / f"{name}.so"
    code.write_text(text)
    macros = [f"-D{macro}={value}" for macro, value in defines]
    command = [compiler(), *OPTIONS, *macros, f"-I{SIMT}", f"-I{SIMT / 'include'}", str(code), "-o", str(built)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{source} does not compile for the host:\n{ran.stderr}")
    return ctypes.CDLL(str(built))


def flattened(source: Path, seen: set[Path]) -> str:
    """The source with the files of the package that it includes put in their places, once each."""
    if source in seen:
        return ""
    seen.add(source)

    def included(match: re.Match[str]) -> str:
        for folder in (source.parent, KERNELS):
            if (folder / match[1]).is_file():
                return flattened((folder / match[1]).resolve(), seen) + f'\n#line 1 "after {match[1]}"'
        raise FileNotFoundError(f"{source} includes {match[1]}, which is not in the package")

    text = DYNAMIC.sub(r"\1* const \2 = reinterpret_cast<\1*>(simt::dynamic_shared());", source.read_text())
    return f'#line 1 "{source.name}"\n' + INCLUDE.sub(included, text)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fastvicreg-simt-")
