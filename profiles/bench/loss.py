"""The loss benchmark: forward and backward of every implementation beside the official form, with its errors.

Shape suffixes: N samples of the batch, D embedding width, S the smaller of the two, L the larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastvicreg.errors import UserError
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.kernels.loss.operators import Weights
from fastvicreg.kernels.loss.ranks import Ranks
from fastvicreg.kernels.loss.reference import official_terms
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions
from fastvicreg.profiles.measure import Timing, interleaved
from fastvicreg.registry import unknown

COLUMNS = (
    *("impl", "n", "d", "dtype", "device", "ms", "spread", "repeats", "ratio", "graph_ms", "floor_ms"),
    *("loss_error", "grad_error", "peak_bytes"),
)

DTYPES = ("float64", "float32", "bfloat16", "float16")
DEFAULT_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
DEFAULT_SIZES = {"cpu": ((256, 8192), (1024, 8192)), "cuda": ((256, 8192), (2048, 8192), (4096, 8192))}

AGREEMENT = ((64, 512), (128, 64))
"""Sizes, one to either side of N = D, at which every run also compares the implementations in fp64."""

REFERENCE_LIMIT = 1 << 28
"""Up to this N D^2 the fp64 yardstick is the reference; beyond, the Gram form, whose agreement the rows above show."""

CPU_LONG = 1 << 35
"""From this N D^2 the official form takes seconds on a CPU: three repeats at most."""

COMPILED = (2048, 8192)
"""The size at which the official form is compiled too, which takes longer than to measure it."""

OFFICIAL = Weights(25.0, 25.0, 1.0, 0.5, 1.0, 1e-4)

Call = Callable[[], tuple[Tensor, ...]]


def run(
    sizes: Sequence[tuple[int, int]] | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    repeats: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per size (N, D) and implementation, first at the ``AGREEMENT`` sizes in fp64.

    "official" is the official form in fp32 (fp64), on a GPU also as the official code runs it: under autocast to
    ``dtype``, eager and compiled. ``ms`` is of forward and backward with all that the host does between kernels,
    ``graph_ms`` of the same replayed as a CUDA graph; ``ratio`` how many times faster than "official".
    ``floor_ms`` is the time of the products that no form avoids: 8 S^2 L operations (S the smaller of N and D, L the
    larger), on a GPU at the rate of a large product in ``dtype``. Errors are relative to fp64 on the same (rounded)
    embeddings; ``peak_bytes`` is what torch allocates beyond the embeddings. Raises ``UserError`` for an unknown
    ``dtype``.
    """
    return list(rows(sizes, dtype, device, repeats, seed))


def rows(
    sizes: Sequence[tuple[int, int]] | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    repeats: int = 5,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """The rows of ``run``, those of a size as soon as they are known."""
    kind = torch.device(device).type
    dtype = dtype or DEFAULT_DTYPE[kind]
    if dtype not in DTYPES:
        raise UserError(unknown("dtype", dtype, DTYPES))
    cases = [(n, d, "float64") for n, d in AGREEMENT] + [(n, d, dtype) for n, d in sizes or DEFAULT_SIZES[kind]]
    for n, d, name in cases:
        yield from _rows(n, d, name, device, repeats, seed)


def _rows(n: int, d: int, dtype: str, device: str, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    za_ND, zb_ND = embeddings(n, d, seed, getattr(torch, dtype), device)
    calls = dict(_calls(za_ND, zb_ND))
    if device == "cpu" and n * d * d >= CPU_LONG:
        repeats = min(repeats, 3)
    floor, share = _floor(za_ND, zb_ND)
    timings = interleaved({**calls, "floor": floor}, repeats=repeats, device=device)
    graphs = _replays(calls, repeats, device)

    truth_impl = "reference" if n * d * d <= REFERENCE_LIMIT else "gram"
    truth_loss, *truth_grads = forward_backward(za_ND.double(), zb_ND.double(), truth_impl)()
    for name, call in calls.items():
        loss, *grads = call()
        timing = timings[name]
        yield {
            "impl": name,
            "n": n,
            "d": d,
            "dtype": dtype,
            "device": device,
            "ms": timing.ms,
            "spread": timing.spread,
            "repeats": timing.n,
            "ratio": timings["official"].ms / timing.ms,
            **({"graph_ms": graphs[name].ms} if name in graphs else {}),
            "floor_ms": timings["floor"].ms * share,
            "loss_error": relative_error([loss], [truth_loss]),
            "grad_error": relative_error(grads, truth_grads),
            "peak_bytes": _peak_bytes(call, device),
        }


def _calls(za_ND: Tensor, zb_ND: Tensor) -> Iterator[tuple[str, Call]]:
    """Forward and backward by name, of what can run on the embeddings' device and type."""
    device, dtype = za_ND.device.type, za_ND.dtype
    yield "official", forward_backward(za_ND, zb_ND, "reference")
    if device == "cuda" and dtype in (torch.bfloat16, torch.float16):
        yield "official, autocast", official_call(za_ND, zb_ND, official_terms)
        if za_ND.shape == COMPILED:
            yield "official, compiled", official_call(za_ND, zb_ND, torch.compile(official_terms))
    for impl in KERNELS["loss"].runnable(device, dtype):  # ``bench correctness`` says why others do not run
        if impl != "reference":
            yield impl, forward_backward(za_ND, zb_ND, impl)


def embeddings(n: int, d: int, seed: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Two views that agree in part, their columns' deviations to either side of the hinge."""
    # Made where they are used: a CPU takes 8 ns for each of up to half a billion numbers.
    generator = torch.Generator(device).manual_seed(seed)
    shared_ND, a_ND, b_ND = (torch.randn(n, d, generator=generator, device=device) for _ in range(3))
    deviation_D = torch.linspace(0.5, 1.5, d, device=device)
    return (
        (deviation_D * (0.8 * shared_ND + 0.6 * a_ND)).to(dtype),
        (deviation_D * (0.8 * shared_ND + 0.6 * b_ND)).to(dtype),
    )


def forward_backward(za_ND: Tensor, zb_ND: Tensor, impl: str) -> Call:
    """A call that gives the loss and both gradients by that implementation."""
    return _differentiated(za_ND, zb_ND, lambda za_ND, zb_ND: vicreg_loss(za_ND, zb_ND, impl=impl).total)


def official_call(za_ND: Tensor, zb_ND: Tensor, terms: Callable[..., tuple[Tensor, ...]]) -> Call:
    def total(za_ND: Tensor, zb_ND: Tensor) -> Tensor:
        with torch.autocast(za_ND.device.type, za_ND.dtype):
            return terms(za_ND, zb_ND, OFFICIAL, Ranks())[0]

    return _differentiated(za_ND, zb_ND, total)


def _differentiated(za_ND: Tensor, zb_ND: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Call:
    za_ND, zb_ND = za_ND.detach().requires_grad_(), zb_ND.detach().requires_grad_()

    def call() -> tuple[Tensor, ...]:
        total = loss(za_ND, zb_ND)
        return total.detach(), *torch.autograd.grad(total, (za_ND, zb_ND))

    return call


def _replays(calls: Mapping[str, Call], repeats: int, device: str) -> dict[str, Timing]:
    """Each call but the compiled one, captured and replayed; nothing where there is no GPU."""
    if not device.startswith("cuda"):
        return {}
    graphs = {}
    for name, call in calls.items():
        if name == "official, compiled":
            continue
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graphs[name] = graph.replay
    return interleaved(graphs, repeats=repeats, device=device)


LARGE = 8192
"""Side of the square product whose rate a GPU's floor is set by."""


def _floor(za_ND: Tensor, zb_ND: Tensor) -> tuple[Callable[[], Any], float]:
    """What to time, and the share of its time that is the floor: on a CPU the four products, all of it."""
    small, large = sorted(za_ND.shape)
    if za_ND.device.type == "cuda":
        side = LARGE if za_ND.dtype != torch.float64 else 1024
        left, right = (torch.randn(side, side, device=za_ND.device).to(za_ND.dtype) for _ in range(2))
        return lambda: left @ right, 8 * small**2 * large / (2 * side**3)
    narrow = [z_ND if z_ND.shape[0] < z_ND.shape[1] else z_ND.T for z_ND in (za_ND, zb_ND)]
    return lambda: [z_SL @ z_SL.T @ z_SL for z_SL in narrow], 1.0


def relative_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Of all tensors together, in the Frobenius norm."""
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


BENCHMARK = Benchmark(rows, COLUMNS, key=("impl", "n", "d", "dtype", "device"), options=DeviceOptions)
