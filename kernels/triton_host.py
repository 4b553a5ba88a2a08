"""How Triton's kernels are launched, and what that needs of a machine beside its GPU."""

from __future__ import annotations

import functools
from typing import Any

import torch

OPTIONS = {"enable_fp_fusion": True}
"""Of every launch: multiply-adds are fused, as by nvcc, which Triton from 3.10 on does only where it is asked to."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """On the device of the first tensor, which need not be torch's current one."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **OPTIONS, **options)


@functools.cache
def missing() -> str:
    """Why Triton launches nothing on this machine's GPU, with the way out, or "": asked before a kernel is chosen.

    What it launches by is C, compiled at the first use on a machine and kept. Images of torch without a compiler, such
    as PyTorch's own "runtime" ones, hold Triton all the same.
    """
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:  # a compiler's, a linker's or the driver's, of any class
        reason = str(error).partition("\n")[0][:160] or type(error).__name__
        return f"Triton cannot launch here ({reason}): install a C compiler and Python's headers (gcc, python3-dev)"
    return ""
