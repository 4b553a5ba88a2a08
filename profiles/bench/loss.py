"""The loss benchmark: forward and backward of every implementation beside the official form, with its errors.

Shape suffixes: N samples of the batch, D embedding width, S the smaller of the two, L the larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastvicreg.contracts import UserError
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.profiles.measure import interleaved
from fastvicreg.registry import unknown

COLUMNS = (
    *("impl", "n", "d", "dtype", "device", "ms", "spread", "repeats", "ratio", "floor_ms"),
    *("loss_error", "grad_error", "peak_bytes"),
)

IMPLEMENTATIONS = {"official": "reference", "gram": "gram"}
DTYPES = ("float64", "float32", "bfloat16", "float16")

AGREEMENT = ((64, 512), (128, 64))
"""Sizes, one to either side of N = D, at which every run also compares the implementations in fp64."""

REFERENCE_LIMIT = 1 << 28
"""Up to this N D^2 the fp64 yardstick is the reference; beyond, the Gram form, whose agreement the rows above show."""

CPU_LONG = 1 << 35
"""From this N D^2 the official form takes seconds on a CPU: three repeats at most."""


def run(
    sizes: Sequence[tuple[int, int]] = ((256, 8192), (1024, 8192)),
    dtype: str = "float32",
    device: str = "cpu",
    repeats: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per size (N, D) and implementation, first at the ``AGREEMENT`` sizes in fp64.

    ``ms`` is of forward and backward, ``ratio`` how many times the official form's, ``floor_ms`` the time of the
    four matrix products that no form avoids; errors are relative to fp64 on the same (rounded) embeddings;
    ``peak_bytes`` is what torch allocates beyond the embeddings. Raises ``UserError`` for an unknown ``dtype``.
    """
    if dtype not in DTYPES:
        raise UserError(unknown("dtype", dtype, DTYPES))
    cases = [(n, d, "float64") for n, d in AGREEMENT] + [(n, d, dtype) for n, d in sizes]
    return [row for n, d, kind in cases for row in _rows(n, d, kind, device, repeats, seed)]


def _rows(n: int, d: int, dtype: str, device: str, repeats: int, seed: int) -> list[dict[str, Any]]:
    za_ND, zb_ND = _embeddings(n, d, seed, getattr(torch, dtype), device)
    calls = {name: _call(za_ND, zb_ND, impl) for name, impl in IMPLEMENTATIONS.items()}
    if device == "cpu" and n * d * d >= CPU_LONG:
        repeats = min(repeats, 3)
    timings = interleaved({**calls, "floor": _floor(za_ND, zb_ND)}, repeats=repeats, device=device)

    truth_impl = "reference" if n * d * d <= REFERENCE_LIMIT else "gram"
    truth_loss, *truth_grads = _call(za_ND.double(), zb_ND.double(), truth_impl)()
    rows = []
    for name, call in calls.items():
        loss, *grads = call()
        timing = timings[name]
        rows.append(
            {
                "impl": name,
                "n": n,
                "d": d,
                "dtype": dtype,
                "device": device,
                "ms": timing.ms,
                "spread": timing.spread,
                "repeats": timing.n,
                "ratio": timings["official"].ms / timing.ms,
                "floor_ms": timings["floor"].ms,
                "loss_error": _relative_error([loss], [truth_loss]),
                "grad_error": _relative_error(grads, truth_grads),
                "peak_bytes": _peak_bytes(call, device),
            }
        )
    return rows


def _embeddings(n: int, d: int, seed: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Two views that agree in part, their columns' deviations to either side of the hinge."""
    generator = torch.Generator().manual_seed(seed)
    shared_ND, a_ND, b_ND = (torch.randn(n, d, generator=generator) for _ in range(3))
    deviation_D = torch.linspace(0.5, 1.5, d)
    return (
        (deviation_D * (0.8 * shared_ND + 0.6 * a_ND)).to(device, dtype),
        (deviation_D * (0.8 * shared_ND + 0.6 * b_ND)).to(device, dtype),
    )


def _call(za_ND: Tensor, zb_ND: Tensor, impl: str) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    za_ND, zb_ND = za_ND.detach().requires_grad_(), zb_ND.detach().requires_grad_()

    def forward_backward() -> tuple[Tensor, Tensor, Tensor]:
        total = vicreg_loss(za_ND, zb_ND, impl=impl).total
        grad_a_ND, grad_b_ND = torch.autograd.grad(total, (za_ND, zb_ND))
        return total.detach(), grad_a_ND, grad_b_ND

    return forward_backward


def _floor(za_ND: Tensor, zb_ND: Tensor) -> Callable[[], list[Tensor]]:
    def products() -> list[Tensor]:
        narrow = [z_ND if z_ND.shape[0] < z_ND.shape[1] else z_ND.T for z_ND in (za_ND, zb_ND)]
        return [z_SL @ z_SL.T @ z_SL for z_SL in narrow]

    return products


def _relative_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    difference = sum((x.double() - y).square().sum() for x, y in zip(found, truth, strict=True))
    return float((difference / sum(y.square().sum() for y in truth)) ** 0.5)


def _peak_bytes(call: Callable[[], Any], device: str) -> int:
    """The most that torch's allocator holds at a time for ``call``; a library's own scratch is not seen."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    assert recorded.profiler is not None
    # profile.events() folds allocations into the operator that made them; their order is in the raw record alone.
    record: Any = recorded.profiler.kineto_results
    events = [event for event in record.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
