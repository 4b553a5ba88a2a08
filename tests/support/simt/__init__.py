"""CUDA kernels run on the CPU: the same source, its threads as coroutines that switch at barriers.

What this proves is arithmetic: indices, reductions, tails, roundings. It knows no memory model and no speed. Caught:
an access outside every array or misaligned, an index beyond an array of known size, a barrier that some threads miss,
a shared variable read before it is written (it holds NaN), a result that hangs on the order of blocks or threads.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastvicreg.kernels.cuda.compiler import KERNELS
from simt.build import library
from simt.memory import ALIGNMENT, guarded, is_guarded, repair

__all__ = ["Fault", "guarded", "run_on_host"]

Argument = Tensor | np.ndarray | np.number | float | bytes | None


class Fault(RuntimeError):
    """What the kernel did that a device would not allow, or not define: in which block and thread."""


def run_on_host(
    source: str | Path,
    kernel: str,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    arguments: tuple[Argument, ...] | list[Argument],
    *,
    shared_bytes: int = 0,
    defines: Mapping[str, str | int] | None = None,
    seed: int = 0,
) -> None:
    """Launch ``kernel`` of ``source``, a path below ``kernels/`` or an absolute one, and wait.

    ``arguments`` as a ``Launcher`` takes them, with CPU tensors or numpy arrays, which are copied between guard pages
    and back; those from ``guarded`` are used where they are, so that their addresses can be put into a table. ``seed``
    orders blocks and threads. Raises ``Fault``, ``TypeError`` for an argument of the wrong size, and ``RuntimeError``
    where the source does not compile; skips the test where there is no g++.
    """
    built = library((KERNELS / source).resolve(), tuple((k, str(v)) for k, v in sorted((defines or {}).items())))
    copies: list[tuple[Tensor, Tensor]] = []
    values = [_value(argument, copies) for argument in arguments]
    _check_sizes(built, kernel, values)
    run = getattr(built, f"simt_run_{kernel}")
    run.restype = ctypes.c_char_p
    addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    message = run(_extent(grid), _extent(block), ctypes.c_size_t(shared_bytes), ctypes.c_uint(seed), addresses)
    damaged = repair()
    if message:
        raise Fault(f"{kernel}: {message.decode()}")
    if damaged:
        raise Fault(f"{kernel}: wrote outside an array, less than {mmap.PAGESIZE + ALIGNMENT} bytes from it")
    for original, copy in copies:
        original.copy_(copy)


def _value(argument: Argument, copies: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """One element, laid out as the kernel reads it."""
    if isinstance(argument, np.ndarray):
        argument = torch.from_numpy(argument)
    if isinstance(argument, Tensor):
        if not is_guarded(argument):
            original, argument = argument, guarded(argument)
            copies.append((original, argument))
        return np.array([argument.data_ptr()], np.uint64)
    if argument is None:
        return np.zeros(1, np.uint64)
    if isinstance(argument, np.number):
        return np.array([argument])
    if isinstance(argument, float):
        return np.array([argument], np.float32)
    if isinstance(argument, bytes):
        return np.array([argument], f"V{len(argument)}")
    raise TypeError(f"a kernel takes tensors, numpy scalars, floats and bytes, got {argument!r}: write np.int32(n)")


def _check_sizes(built: ctypes.CDLL, kernel: str, values: list[np.ndarray]) -> None:
    sizes = (ctypes.c_int * 64)()
    if not hasattr(built, f"simt_sizes_{kernel}"):
        raise ValueError(f"the source has no kernel {kernel!r}")
    count = getattr(built, f"simt_sizes_{kernel}")(sizes)
    if sizes[:count] != [value.itemsize for value in values]:
        raise TypeError(f"{kernel} takes {sizes[:count]} bytes, got {[value.itemsize for value in values]}")


def _extent(extent: int | tuple[int, ...]) -> ctypes.Array[ctypes.c_uint]:
    sides = (extent,) if isinstance(extent, int) else extent
    return (ctypes.c_uint * 3)(*(*sides, 1, 1)[:3])
