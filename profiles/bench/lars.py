"""The LARS benchmark: one update of a ResNet-50 with its expander, every implementation beside the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvicreg.contracts import UserError
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.lars import choose_for, lars_update
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions
from fastvicreg.profiles.measure import interleaved

COLUMNS = (
    *("impl", "tensors", "parameters", "dtype", "device", "ms", "spread", "repeats", "ratio", "floor_ms", "vs_floor"),
    *("error", "note"),
)

PASSES = 7
"""Over the parameters in the least traffic: parameter and gradient for the norms; both and the buffer again, and two
written. A copy makes 2."""
EXPANDER_WIDTH = {"cpu": 1024, "cuda": 8192}
RESNET50_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""(width, blocks): a block is 1x1, 3x3 and 1x1 convolutions to four times the width."""


def run(
    shapes: Sequence[tuple[int, ...]] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    repeats: int = 7,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per implementation, for parameters of these shapes.

    Without ``shapes``, ResNet-50 and an expander of three layers, 8192 wide on a GPU and 1024 on a CPU. ``ratio`` is
    how many times faster than the reference; ``floor_ms`` the time of the least traffic (28 bytes a parameter in
    fp32) at the speed of a copy here, ``vs_floor`` the time over it; ``error`` the largest difference from the
    reference's parameters after three updates, as a share of the largest parameter. An implementation that cannot run
    here has a row whose ``note`` tells why.
    """
    kind = torch.device(device).type
    if shapes is None:
        shapes = resnet50_shapes() + expander_shapes(2048, EXPANDER_WIDTH[kind])
    start, grads = (_tensors(shapes, seed + offset, dtype, device) for offset in range(2))
    updates, results, missing = {}, {}, []
    for impl in KERNELS["lars"].names:
        try:
            choose_for(impl, start)
        except UserError as error:
            missing.append({"impl": impl, "device": device, "note": str(error)})
            continue
        params = [tensor.clone() for tensor in start]
        updates[impl] = _update(params, grads, impl)
        for _ in range(3):
            updates[impl]()
        results[impl] = [param.clone() for param in params]

    parameters = sum(tensor.numel() for tensor in start)
    source, target = (torch.zeros(parameters, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    timings = interleaved({**updates, "copy": lambda: target.copy_(source)}, repeats=repeats, device=device)
    floor = PASSES / 2 * timings.pop("copy").ms
    rows = [
        {
            "impl": impl,
            "tensors": len(start),
            "parameters": parameters,
            "dtype": dtype,
            "device": device,
            "ms": timing.ms,
            "spread": timing.spread,
            "repeats": timing.n,
            "ratio": timings["reference"].ms / timing.ms,
            "floor_ms": floor,
            "vs_floor": timing.ms / floor,
            "error": worst_error(results[impl], results["reference"]),
        }
        for impl, timing in timings.items()
    ]
    return rows + missing


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Every parameter of a ResNet-50 without its classifier: 159 tensors, 23.5 M elements."""
    shapes: list[tuple[int, ...]] = []

    def convolution(out: int, into: int, side: int) -> None:
        shapes.extend([(out, into, side, side), (out,), (out,)])  # with its BatchNorm's scale and shift

    convolution(64, 3, 7)
    into = 64
    for width, blocks in RESNET50_STAGES:
        for block in range(blocks):
            convolution(width, into, 1)
            convolution(width, width, 3)
            convolution(4 * width, width, 1)
            if block == 0:
                convolution(4 * width, into, 1)
            into = 4 * width
    return shapes


def expander_shapes(into: int, width: int) -> list[tuple[int, ...]]:
    """Linear with bias and BatchNorm twice, then a Linear without bias."""
    return [(width, into), *[(width,)] * 3, (width, width), *[(width,)] * 3, (width, width)]


def _tensors(shapes: Sequence[tuple[int, ...]], seed: int, dtype: str, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.02 * torch.randn(shape, generator=generator).to(device, getattr(torch, dtype)) for shape in shapes]


def _update(params: list[Tensor], grads: list[Tensor], impl: str) -> Callable[[], None]:
    buffers = [torch.zeros_like(param) for param in params]
    return lambda: lars_update(params, grads, buffers, lr=0.1, weight_decay=1e-6, momentum=0.9, eta=0.001, impl=impl)


def worst_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    largest = max(float(y.abs().max()) for y in truth)
    apart = [(x - y).abs().max() for x, y in zip(found, truth, strict=True)]
    return float(torch.stack(apart).max()) / largest  # torch's maximum: Python's own passes over a NaN


BENCHMARK = Benchmark(run, COLUMNS, key=("impl", "tensors", "parameters", "dtype", "device"), options=DeviceOptions)
