"""What an older compiler or interpreter than the tested one cannot do: said by skipping, not by failing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

from fastvicreg.kernels.cuda.compiler import compiler_version
from fastvicreg.kernels.cuda.cubin import Usage

WITHOUT_SPILLS = (13, 5)
"""The NVRTC from which on every kernel is known to keep to its registers for every architecture."""

PROBE = """
import torch, triton
import triton.language as tl

@triton.jit
def doubled(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, 2 * tl.load(x + at, mask=at < N - 1, other=0.0).to(tl.float32))

if __name__ == "__main__":
    x, y = torch.arange(16.0), torch.zeros(16)
    doubled[(1,)](x, y, N=16)
    assert y.tolist()[:15] == [2.0 * i for i in range(15)], y
"""


def require_interpreter() -> None:
    """Skip where Triton's interpreter does not run three lines here: 3.6's does not on numpy 2.5."""
    if reason := _interpreter_fault():
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("triton", "numpy"))
        pytest.skip(f"Triton's interpreter does not run here ({versions}): {reason}")


@functools.cache
def _interpreter_fault() -> str:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.py")  # a kernel's source is read from its file
        path.write_text(PROBE)
        ran = subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=120)
    return "" if ran.returncode == 0 else (ran.stderr.strip().splitlines() or ["no message"])[-1]


def assert_no_spills(usage: Usage, which: object) -> None:
    """Skip where an older compiler spills what the tested one does not."""
    spilled = usage.spill_store_bytes, usage.spill_load_bytes, usage.stack_bytes
    if any(spilled) and compiler_version() < WITHOUT_SPILLS:
        pytest.skip(f"NVRTC {'.'.join(map(str, compiler_version()))} spills {spilled} bytes in {which}")
    assert spilled == (0, 0, 0), (which, usage)
