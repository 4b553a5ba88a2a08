"""Machine code that the wheel carries, which spares its users the compiler; what it lacks the compiler makes."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch

from fastvicreg.errors import UserError
from fastvicreg.kernels.cuda.compiler import compile_cubin, cuda_core, missing_compiler
from fastvicreg.kernels.cuda.cubin import Cubin, Defines, check_architecture, file_name, identity, macros, unpacked

ARCHIVE = Path(__file__).with_name("cubins.zip")
"""``build.write`` makes it, for a wheel; a checkout has none."""

INSTALL_BINDINGS = "pip install cuda-core 'cuda-bindings==13.*'"
RUNS_ON = {
    "sm_80": ("sm_80", "sm_86", "sm_89"),
    "sm_90": ("sm_90",),
    "sm_100": ("sm_100", "sm_103"),
    "sm_120": ("sm_120", "sm_121"),
}
"""The devices that run an architecture's machine code: the same major revision, the same or a higher minor one.

NVIDIA's compatibility guides promise no more, and nothing for Jetson's (sm_87), whose code is the compiler's.
"""


def machine_code(source: str, arch: str, *, defines: Defines | None = None) -> Cubin:
    """``source`` for a device of that architecture: the wheel's where it holds it, else as ``compile_cubin``.

    A source that was edited, or another set of ``defines``, is another one, which no prebuilt code is taken for.

    Raises ``UserError`` where it is neither prebuilt nor can be compiled here, and what ``compile_cubin`` raises.
    """
    check_architecture(arch)
    defines = defines or {}
    if (found := find(source, arch, defines)) is not None:
        return found
    if ARCHIVE.is_file() and (reason := missing_compiler()):
        chosen = ", ".join(f"{name}={value}" for name, value in macros(defines)) or "no macros"
        raise UserError(f"{outdated_driver() or f'{source} with {chosen} is not prebuilt for {arch}'}; {reason}")
    return compile_cubin(source, arch, defines=defines)


def find(source: str, arch: str, defines: Defines) -> Cubin | None:
    """The wheel's machine code for that device, None where it has none; ``UserError`` where the archive is damaged."""
    made_for = next((made_for for made_for, devices in RUNS_ON.items() if arch in devices), None)
    if made_for is None or outdated_driver():
        return None
    name = file_name(source, made_for, identity(source, made_for, defines))
    with _opened() as archive:
        if archive is None or name not in archive.namelist():
            return None
        return unpacked(archive.read(name), source, made_for, "prebuilt")


def architectures() -> dict[str, int]:
    """How many files of machine code the wheel carries, by architecture; empty where it carries none."""
    with _opened() as archive:
        made_for = [name.split("-")[-2] for name in archive.namelist()] if archive else []
    return {arch: made_for.count(arch) for arch in RUNS_ON if arch in made_for}


def outdated_driver() -> str:
    """Why the driver loads nothing of what the wheel carries, or "".

    It must know the major version of CUDA that the code was compiled by; the minor one may be older than that.
    """
    with _opened() as archive:
        needed = int(archive.comment) if archive else 0
    known = driver_version()
    if known is None or known >= needed:
        return ""
    return f"the prebuilt kernels need a driver for CUDA {needed}, this one is for CUDA {known}"


def summary() -> str:
    """``architectures`` in words; ``UserError`` where nothing of the kind can be loaded."""
    if not (carried := architectures()):
        raise UserError("this installation carries no machine code: kernels are compiled at first use")
    if reason := outdated_driver():
        raise UserError(f"{reason}: kernels are compiled at first use")
    counts = ", ".join(f"{arch} ({count})" for arch, count in carried.items())
    return f"machine code for {counts}; what is not among it is compiled at first use"


def missing() -> str:
    """What the current device's kernels need that is not installed, or any device's where there is none, or "".

    The compiler counts where nothing prebuilt fits the device and its driver. One line with the command that adds it.
    """
    carried = architectures()
    if torch.cuda.is_available():
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
        carried = {made_for: count for made_for, count in carried.items() if arch in RUNS_ON[made_for]}
    outdated = outdated_driver()
    if outdated or not carried:
        reason = missing_compiler()
        return f"{outdated}; {reason}" if outdated and reason else reason
    try:
        cuda_core()
    except ImportError as error:
        return f"the CUDA kernels need cuda-core and cuda-bindings ({error}): {INSTALL_BINDINGS}"
    return ""


def driver_version() -> int | None:
    """The major version of CUDA that the driver knows; None where there is no driver, or nothing to ask it by."""
    try:
        status, version = import_module("cuda.bindings.driver").cuDriverGetVersion()
    except (ImportError, RuntimeError):
        return None
    return None if int(status) else version // 1000


@contextlib.contextmanager
def _opened() -> Iterator[zipfile.ZipFile | None]:
    if not ARCHIVE.is_file():
        yield None
        return
    try:
        with zipfile.ZipFile(ARCHIVE) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"cannot read the prebuilt kernels in {ARCHIVE} ({error}): install fastvicreg anew.") from error
