"""What Triton needs of a machine beside its GPU, asked before a kernel is chosen and not by the first step."""

from __future__ import annotations

import functools


@functools.cache
def missing() -> str:
    """Why Triton launches nothing on this machine's GPU, with the way out, or "".

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
