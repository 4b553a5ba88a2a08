"""The CUDA binding: sources in this package as machine code for the device at hand, launched on torch's current stream.

A kernel's folder holds its ``.cu`` file; every kernel in it is ``extern "C"``. Nothing here needs a GPU but launching.
"""

from fastvicreg.kernels.cuda.compiler import INSTALL, compile_cubin
from fastvicreg.kernels.cuda.cubin import ARCHITECTURES, Cubin, Usage, Variant
from fastvicreg.kernels.cuda.launch import Launcher, kernel, obstacle
from fastvicreg.kernels.cuda.prebuilt import machine_code, missing

__all__ = [
    "ARCHITECTURES",
    "INSTALL",
    "Cubin",
    "Launcher",
    "Usage",
    "Variant",
    "compile_cubin",
    "kernel",
    "machine_code",
    "missing",
    "obstacle",
]
