"""The CUDA binding: sources in this package, compiled for the device at hand and launched on torch's current stream.

A kernel's folder holds its ``.cu`` file; every kernel in it is ``extern "C"``. Nothing here needs a GPU but launching.
"""

from fastvicreg.kernels.cuda.compiler import ARCHITECTURES, INSTALL, Cubin, Usage, compile_cubin, missing
from fastvicreg.kernels.cuda.launch import Launcher, kernel, obstacle

__all__ = ["ARCHITECTURES", "INSTALL", "Cubin", "Launcher", "Usage", "compile_cubin", "kernel", "missing", "obstacle"]
