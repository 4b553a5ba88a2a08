"""Kernels ready to run on one device: loaded once, launched on torch's current stream."""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import struct
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.kernels.cuda.compiler import compile_cubin, cuda_core, missing_compiler
from fastvicreg.kernels.cuda.cubin import OLDEST, Cubin, Usage
from fastvicreg.kernels.cuda.prebuilt import machine_code, missing

log = logging.getLogger(__name__)

NO_DEVICE = "the CUDA kernels need a CUDA device and torch finds none: fastvicreg doctor tells more"
Argument = Tensor | np.number | float | bytes | None
Extent = int | tuple[int, ...]
CODES: dict[type, str] = {
    float: "f",
    np.float32: "f",
    np.float64: "d",
    np.int32: "i",
    np.int64: "q",
    np.uint32: "I",
    np.uint64: "Q",
}
"""Numbers in ``struct``'s language."""
NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT
STATIC_SHARED_BYTES = 48 << 10
"""Shared memory that every kernel may take; above it the limit is raised kernel by kernel."""


def kernel(
    source: str,
    name: str,
    *,
    defines: Mapping[str, str | int] | None = None,
    device: torch.device | str,
) -> Launcher:
    """The ``extern "C"`` kernel ``name`` of ``source`` (as in ``compile_cubin``), compiled and loaded for ``device``.

    Compiled at most once a device and set of ``defines``; ask for it before a CUDA graph is captured.

    Raises ``UserError`` where there is no CUDA device, it is older than sm_80, or the toolchain or driver does not fit.
    """
    device = torch.device(device)
    if device.type != "cuda":
        raise ValueError(f"CUDA kernels run on CUDA devices, not on {device}")
    return _load(source, name, tuple(sorted((defines or {}).items())), _index(device))


def _index(device: torch.device) -> int:
    if device.index is not None:
        return device.index
    if not torch.cuda.is_available():
        raise UserError(f"{NO_DEVICE}.")
    return torch.cuda.current_device()


def obstacle() -> str:
    """Why no CUDA kernel can run on the current device, with the way out, or ""."""
    if not torch.cuda.is_available():
        return NO_DEVICE
    major, minor = torch.cuda.get_device_capability()
    if major < OLDEST:
        return f"the CUDA kernels need sm_80 (A100) or later, {torch.cuda.get_device_name()} is sm_{major}{minor}"
    return missing()


class Launcher:
    """One loaded kernel: ``launcher(grid, block, *arguments, shared_bytes=0)``."""

    def __init__(self, name: str, loaded: Any, usage: Usage, index: int) -> None:
        self.name = name
        self.usage = usage
        self._loaded = loaded
        self._index = index
        self._device = torch.device("cuda", index)
        self._shared_limit = STATIC_SHARED_BYTES - usage.shared_bytes
        self._sizes = tuple(int(info.size) for info in loaded.arguments_info)
        self._driver = import_module("cuda.bindings.driver")
        self._function = self._driver.CUfunction(int(loaded.handle))
        self._layouts: dict[tuple[object, ...], struct.Struct] = {}
        self._room = threading.local()

    def __call__(self, grid: Extent, block: Extent, *arguments: Argument, shared_bytes: int = 0) -> None:
        """Launch on torch's current stream of the device, and return at once.

        ``grid`` and ``block`` are blocks and threads in x, y, z. ``arguments`` in the kernel's order: tensors on the
        device (their first element's address; None: a null pointer), numpy scalars for numbers of explicit width
        (``np.int64(n)``), Python floats for float32, ``bytes`` for a structure by value. ``shared_bytes`` is dynamic
        shared memory a block.

        Raises ``TypeError`` for other arguments, plain integers among them, ``ValueError`` where a tensor lies on
        another device, the arguments do not have the sizes that the kernel takes, or a block asks for too much.
        """
        kinds = tuple(len(argument) if isinstance(argument, bytes) else type(argument) for argument in arguments)
        layout = self._layouts.get(kinds) or self._layout(kinds, arguments)
        values = [self._value(argument) for argument in arguments]
        buffer, addresses = self._buffer()
        layout.pack_into(buffer, 0, *values)
        with torch.cuda.device(self._index):
            if shared_bytes > self._shared_limit:
                self._raise_shared_limit(shared_bytes)
            stream = self._driver.CUstream(torch.cuda.current_stream(self._index).cuda_stream)
            # The driver copies the arguments from these addresses before it returns.
            launch = (self._function, *_extent(grid), *_extent(block), shared_bytes, stream, addresses, 0)
            (status,) = self._driver.cuLaunchKernel(*launch)
            if int(status) == NO_CONTEXT:  # a thread's first use of the device, which torch puts off
                cuda_core().Device(self._index).set_current()
                (status,) = self._driver.cuLaunchKernel(*launch)
        if int(status):
            raise RuntimeError(f"{self.name} was not launched, grid {grid}, block {block}: {status!r}")

    def _value(self, argument: Argument) -> Any:
        """What ``struct`` packs for it."""
        if isinstance(argument, Tensor):
            if argument.device != self._device:
                raise ValueError(f"{self.name} runs on {self._device}, got a tensor on {argument.device}")
            return argument.data_ptr()
        return 0 if argument is None else argument

    def _layout(self, kinds: tuple[object, ...], arguments: tuple[Argument, ...]) -> struct.Struct:
        """How arguments of these kinds lie in the buffer: each in a place of its own."""
        codes = [self._code(argument) for argument in arguments]
        if (sizes := tuple(struct.calcsize(f"={code}") for code in codes)) != self._sizes:
            raise ValueError(f"{self.name} takes arguments of {self._sizes} bytes, got {sizes}")
        padded = (f"{code}{_padded(size) - size}x" for code, size in zip(codes, sizes, strict=True))
        self._layouts[kinds] = struct.Struct("=" + "".join(padded))
        return self._layouts[kinds]

    def _code(self, argument: Argument) -> str:
        """In ``struct``'s language."""
        if isinstance(argument, Tensor) or argument is None:
            return "Q"
        if isinstance(argument, bytes):
            return f"{len(argument)}s"
        code = CODES.get(type(argument))
        if code is None:
            raise TypeError(f"{self.name} takes tensors, numpy scalars and floats, got {argument!r}: write np.int32(n)")
        return code

    def _buffer(self) -> tuple[ctypes.Array[ctypes.c_char], int]:
        """Room for the arguments and the address of their addresses: a thread's own, as the driver reads unlocked."""
        if not hasattr(self._room, "buffer"):
            ends = list(itertools.accumulate(map(_padded, self._sizes), initial=0))
            self._room.buffer = ctypes.create_string_buffer(max(ends[-1], 1))
            first = ctypes.addressof(self._room.buffer)
            self._room.addresses = (ctypes.c_uint64 * len(ends))(*(first + start for start in ends))
        return self._room.buffer, ctypes.addressof(self._room.addresses)

    def _raise_shared_limit(self, shared_bytes: int) -> None:
        attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        device = self._driver.CUdevice(self._index)
        (status,) = self._driver.cuKernelSetAttribute(attribute, shared_bytes, self._loaded.handle, device)
        if int(status):
            name = torch.cuda.get_device_name(self._index)
            raise ValueError(f"{self.name} asks for {shared_bytes} bytes of shared memory a block; {name} has less")
        self._shared_limit = shared_bytes


def _padded(size: int) -> int:
    """An argument's room: whatever it holds lies as its type asks."""
    return -(-size // 16) * 16


def _extent(extent: Extent) -> tuple[int, int, int]:
    sides = (extent,) if isinstance(extent, int) else extent
    x, y, z = (*sides, 1, 1)[:3]
    return x, y, z


@functools.cache
def _load(source: str, name: str, defines: tuple[tuple[str, str | int], ...], index: int) -> Launcher:
    cubin = _compiled(source, defines, index)
    if name not in cubin.usage:
        raise ValueError(f"{source} has no kernel {name!r}: its kernels are {', '.join(cubin.usage)}")
    with torch.cuda.device(index):
        cuda_core().Device(index).set_current()
        try:
            loaded = _entry(cubin, name)
        except Exception as error:
            cubin, loaded = _compiled_here(cubin, name, dict(defines), error)
        return Launcher(name, loaded, cubin.usage[name], index)


def _entry(cubin: Cubin, name: str) -> Any:
    """The kernel of that name, as the driver has loaded it."""
    return cuda_core().ObjectCode.from_cubin(cubin.code, name=cubin.source).get_kernel(name)


def _compiled_here(cubin: Cubin, name: str, defines: Mapping[str, str | int], error: Exception) -> tuple[Cubin, Any]:
    """The machine's own compiler's code in place of the wheel's, which the driver refuses with ``error``.

    Within a major version a driver takes the code of every compiler, so that this should not be asked for; where it is,
    an older compiler beside an older driver serves all the same.
    """
    if cubin.origin == "prebuilt" and not missing_compiler():
        log.warning("the driver does not load the prebuilt %s (%s): it is compiled here.", cubin.source, error)
        cubin = compile_cubin(cubin.source, cubin.arch, defines=defines)
        try:
            return cubin, _entry(cubin, name)
        except Exception as again:
            error = again
    raise UserError(
        f"the driver does not load {cubin.source} for {cubin.arch} ({error}): update the driver, or install the "
        f"compiler of its own CUDA version, such as pip install 'cuda-core[cu12]'."
    ) from error


@functools.cache
def _compiled(source: str, defines: tuple[tuple[str, str | int], ...], index: int) -> Cubin:
    if not torch.cuda.is_available():
        raise UserError(f"{NO_DEVICE}.")
    major, minor = torch.cuda.get_device_capability(index)
    cubin = machine_code(source, f"sm_{major}{minor}", defines=dict(defines))
    names = ", ".join(cubin.usage)
    log.info("CUDA kernels of %s, %s for %s, on cuda:%d: %s", source, cubin.origin, cubin.arch, index, names)
    return cubin
