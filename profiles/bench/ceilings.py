"""What this machine can do at most: bytes copied and matrix products a second, the measure of every floor."""

from __future__ import annotations

from typing import Any

import torch

from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions
from fastvicreg.profiles.measure import interleaved

COLUMNS = ("ceiling", "value", "unit", "spread", "repeats", "device")

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Read and written each time: several times any cache."""
SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices multiplied."""


def run(device: str = "cpu", repeats: int = 7) -> list[dict[str, Any]]:
    """Rows of GB/s (read plus written) and TFLOP/s: on a GPU by tensor core type, on a CPU in float32."""
    kind = torch.device(device).type
    source = torch.zeros(COPY_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = SIDE[kind]
    calls: dict[str, Any] = {"copy": lambda: target.copy_(source)}
    names = ("bfloat16", "float16", "float32", "tf32") if kind == "cuda" else ("float32",)
    for name in names:
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        square = torch.randn(side, side, device=device).to(dtype)
        calls[f"matmul {name}"] = _product(square, tf32=name == "tf32")
    timings = interleaved(calls, repeats=repeats, device=device)
    rows = []
    for name, timing in timings.items():
        work = 2 * COPY_BYTES[kind] / 1e9 if name == "copy" else 2 * side**3 / 1e12
        rows.append(
            {
                "ceiling": name,
                "value": work / timing.ms * 1e3,
                "unit": "GB/s" if name == "copy" else "TFLOP/s",
                "spread": timing.spread,
                "repeats": timing.n,
                "device": device,
            }
        )
    return rows


def _product(square: torch.Tensor, *, tf32: bool) -> Any:
    out = torch.empty_like(square)

    def product() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            torch.mm(square, square, out=out)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return product


BENCHMARK = Benchmark(run, COLUMNS, key=("ceiling", "device"), figure="value", better="higher", options=DeviceOptions)
