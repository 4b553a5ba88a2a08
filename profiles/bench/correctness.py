"""Every kernel's every implementation against its reference, on fresh random data, with poisoned memory: no times.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.kernels.augment import augment
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.lars import lars_update
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.profiles.bench.augment import official_params, photo_like
from fastvicreg.profiles.bench.loss import REFERENCE_LIMIT, embeddings, forward_backward, relative_error
from fastvicreg.profiles.bench.norm import EXPANSION, Layer
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions

COLUMNS = ("kernel", "impl", "n", "d", "dtype", "error", "gate", "grad_error", "grad_gate", "verdict")

LOSS_GATE, GRAD_GATE = 1e-3, 1e-2
LARS_GATE = 1e-5
AUGMENT_GATES = {"float32": 2.0, "float16": 2.0, "bfloat16": 3.0}
"""Levels of 255, at most: hue's float arithmetic rounds to a neighbouring level, bfloat16 holds 8 bits."""

NORM_GATES = {"float32": (1e-5, 1e-4), "float16": (2e-3, 5e-2), "bfloat16": (1e-2, 0.1)}
"""Of outputs and gradients. What is rounded before an addition turns ReLU's mask now and then, near 0."""
NORM_SHAPES: dict[str, Sequence[tuple[int, ...]]] = {
    "cuda": ((128, 64, 56, 56), (128, 256, 56, 56), (256, 2048, 7, 7), (26, 24, 33, 9), (512, 8192), (4, 3)),
    "cpu": ((16, 64, 28, 28), (16, 256, 14, 14), (10, 24, 33, 9), (64, 256), (4, 3)),
    "small": ((6, 256, 7, 7), (10, 24, 5, 3), (64, 24)),
}

SIZES: dict[str, Sequence[tuple[int, int]]] = {
    "cuda": (*((n, d) for d in (2048, 8192) for n in (256, 1000, 2048, 4096, 8192)), (257, 1001), (1001, 257), (2, 7)),
    "cpu": ((256, 512), (100, 64), (64, 64), (37, 101), (2, 7)),
    "small": ((64, 160), (160, 64), (33, 47), (2, 7)),
}
TRAINING = {"cuda": ((256, 8192), (2048, 8192)), "cpu": ((128, 256),)}
"""Batch and embedding width of presets' runs."""


@dataclass(frozen=True)
class Scope:
    """How much is compared: sizes, types, and whether every implementation or the one that training takes."""

    sizes: Sequence[tuple[int, int]]
    norm_shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[str] = ("float32", "bfloat16", "float16")
    side: int = 224
    replay: bool = False
    all_implementations: bool = True

    def implementations(self, kernel: str, device: str, dtype: torch.dtype) -> tuple[str, ...]:
        """Those to compare with the reference."""
        if self.all_implementations:
            return tuple(name for name in KERNELS[kernel].names if name != "reference")
        return (KERNELS[kernel].choose("auto", torch.device(device).type, dtype).name,)


def scope(device: str, *, small: bool = False, training: bool = False) -> Scope:
    """``small``: the fewest sizes that reach every path, for a run under compute-sanitizer, and no captured graph, for
    which torch needs the pool of memory that such a run does without. ``training``: what a preset's run takes."""
    kind = torch.device(device).type
    if small:
        return Scope(SIZES["small"], NORM_SHAPES["small"], side=32)
    if not training:
        return Scope(SIZES[kind], NORM_SHAPES[kind], replay=kind == "cuda")
    half = ("bfloat16",) if kind == "cuda" else ("float32",)
    return Scope(TRAINING[kind], NORM_SHAPES[kind], half, replay=kind == "cuda", all_implementations=False)


def run(
    device: str = "cpu", *, small: bool = False, training: bool = False, seed: int | None = None
) -> list[dict[str, Any]]:
    """One row a kernel, implementation, size and type; ``verdict`` is "pass", "FAIL" or why it does not run here.

    What fails in running has "FAIL" and the error. ``small`` and ``training`` as ``scope`` has them. Without ``seed``
    the data differ at each call, and the rows name it.
    """
    return list(rows(scope(device, small=small, training=training), device, seed))


def rows(scope: Scope, device: str, seed: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of ``run``, each as soon as it is known."""
    seed = torch.seed() % 2**31 if seed is None else seed
    with poisoned():
        for part in (_loss, _lars, _augment, _norm, *((_replay,) if scope.replay else ())):
            for row in part(scope, device, seed):
                yield {**row, "device": device, "seed": seed}


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN (the largest integer in integer tensors), so that what is not written is not right."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Its default, and what the poison rests on.
    assert torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def failures(rows: Sequence[dict[str, Any]]) -> int:
    """Rows that failed."""
    return sum(row["verdict"].startswith("FAIL") for row in rows)


def _loss(scope: Scope, device: str, seed: int) -> Iterator[dict[str, Any]]:
    for n, d in scope.sizes:
        # Of two samples a half type's rounding is the whole variance: nothing to hold a gate against.
        for dtype in scope.dtypes if n > 2 else ("float32",):
            za_ND, zb_ND = (_off_the_hinge(z_ND) for z_ND in embeddings(n, d, seed, getattr(torch, dtype), device))
            truth = forward_backward(
                za_ND.double(), zb_ND.double(), "reference" if n * d * d <= REFERENCE_LIMIT else "gram"
            )()
            for impl in scope.implementations("loss", device, za_ND.dtype):
                row = {"kernel": "loss", "impl": impl, "n": n, "d": d, "dtype": dtype}
                yield _tried(row, partial(_loss_errors, za_ND, zb_ND, impl, truth))


def _loss_errors(za_ND: Tensor, zb_ND: Tensor, impl: str, truth: tuple[Tensor, ...]) -> dict[str, Any]:
    loss, *grads = forward_backward(za_ND, zb_ND, impl)()
    errors = relative_error([loss], truth[:1]), relative_error(grads, truth[1:])
    return _judged(*errors, gate=LOSS_GATE, grad_gate=GRAD_GATE)


def _off_the_hinge(z_ND: Tensor) -> Tensor:
    """The embeddings without columns whose deviation is nearly 1: there the gradient jumps, and rounding decides."""
    near_D = (z_ND.double().std(0) - 1).abs() < 0.05
    return z_ND * torch.where(near_D, 1.25, 1.0).to(z_ND.dtype)


def _replay(scope: Scope, device: str, seed: int) -> Iterator[dict[str, Any]]:
    """A captured step of the loss, replayed on other data, against the same step run anew."""
    n, d = 256, 512
    for impl in scope.implementations("loss", device, torch.bfloat16):
        row = {"kernel": "loss, graph replay", "impl": impl, "n": n, "d": d, "dtype": "bfloat16"}
        yield _tried(row, partial(_replayed, n, d, impl, device, seed))


def _replayed(n: int, d: int, impl: str, device: str, seed: int) -> dict[str, Any]:
    za_ND, zb_ND = (z_ND.requires_grad_() for z_ND in embeddings(n, d, seed, torch.bfloat16, device))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(vicreg_loss(za_ND, zb_ND, impl=impl).total, (za_ND, zb_ND))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = vicreg_loss(za_ND, zb_ND, impl=impl).total
        grads = torch.autograd.grad(total, (za_ND, zb_ND))
    others = embeddings(n, d, seed + 1, torch.bfloat16, device)
    with torch.no_grad():
        za_ND.copy_(others[0])
        zb_ND.copy_(others[1])
    graph.replay()
    anew = forward_backward(*others, impl)()
    errors = relative_error([total.detach()], anew[:1]), relative_error(grads, anew[1:])
    return _judged(*errors, gate=1e-6, grad_gate=1e-6)


def _lars(scope: Scope, device: str, seed: int) -> Iterator[dict[str, Any]]:
    shapes = [(64, 3, 7, 7), (64,), (1,), (1, 1), (513, 257), (8191,), (4096, 129), (3, 5)]
    generator = torch.Generator().manual_seed(seed)
    start = [0.1 * torch.randn(shape, generator=generator) for shape in shapes]
    grads = [[torch.randn(shape, generator=generator).to(device) for shape in shapes] for _ in range(3)]
    start[3].zero_()  # a norm of zero: not adapted

    def updated(impl: str) -> list[Tensor]:
        params = [tensor.clone().to(device) for tensor in start]
        buffers = [torch.zeros_like(param) for param in params]
        for step in grads:
            lars_update(params, step, buffers, lr=0.3, weight_decay=1e-2, momentum=0.9, eta=0.1, impl=impl)
        return params

    truth = updated("reference")
    for impl in scope.implementations("lars", device, torch.float32):
        row = {"kernel": "lars", "impl": impl, "n": len(shapes), "d": sum(map(torch.numel, start)), "dtype": "float32"}
        yield _tried(row, lambda impl=impl: _judged(relative_error(updated(impl), truth), gate=LARS_GATE))


def _augment(scope: Scope, device: str, seed: int) -> Iterator[dict[str, Any]]:
    batch, size = 16, scope.side
    crops_BVHWC, params_BVP = photo_like(batch, size, seed), official_params(batch, seed)
    levels = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
    truth = augment(crops_BVHWC, params_BVP, impl="reference", **levels)

    def worst(impl: str, dtype: str) -> float:
        views = augment(crops_BVHWC.to(device), params_BVP, impl=impl, dtype=getattr(torch, dtype), **levels)
        apart = [(view.float().cpu() - true).abs().max() for view, true in zip(views, truth, strict=True)]
        return float(torch.stack(apart).max())  # torch's: Python's own passes over a NaN

    for impl in scope.implementations("augment", device, torch.uint8):
        for dtype, gate in ((name, AUGMENT_GATES[name]) for name in scope.dtypes):
            row = {"kernel": "augment", "impl": impl, "n": batch, "d": size, "dtype": dtype}
            yield _tried(row, lambda impl=impl, dtype=dtype, gate=gate: _judged(worst(impl, dtype), gate=gate))


def _norm(scope: Scope, device: str, seed: int) -> Iterator[dict[str, Any]]:
    for shape in scope.norm_shapes:
        added = len(shape) == 4 and shape[1] in EXPANSION
        for dtype, (gate, grad_gate) in ((name, NORM_GATES[name]) for name in scope.dtypes):
            layer = Layer(shape, added, getattr(torch, dtype), device, seed=seed)
            truth = Layer(shape, added, torch.float64, device, like=layer)
            wanted = truth.differentiated(truth.by("reference"))
            row = {"kernel": "norm, add" if added else "norm", "n": shape[0], "d": shape[1], "dtype": dtype}
            for impl in scope.implementations("norm", device, layer.x.dtype):
                check = partial(_norm_errors, layer, impl, wanted, gate, grad_gate)
                yield _tried({**row, "impl": impl}, check)


def _norm_errors(layer: Layer, impl: str, wanted: Sequence[Tensor], gate: float, grad_gate: float) -> dict[str, Any]:
    found, grads = layer.differentiated(layer.by(impl)), len(layer.trained)
    error, grad_error = (relative_error(found[part], wanted[part]) for part in (slice(grads, None), slice(grads)))
    return _judged(error, grad_error, gate=gate, grad_gate=grad_gate)


def _tried(row: dict[str, Any], check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """``row`` with what ``check`` finds; what cannot run here, or fails in running, costs its own row."""
    try:
        return row | check()
    except UserError as error:
        return row | {"verdict": str(error)}
    except Exception as error:  # a compiler's or a driver's, of any class
        return row | {"verdict": f"FAIL: {type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def _judged(error: float, grad_error: float = 0.0, *, gate: float, grad_gate: float | None = None) -> dict[str, Any]:
    """NaN passes no gate."""
    passed = error <= gate and (grad_gate is None or grad_error <= grad_gate)
    figures: dict[str, Any] = {"error": error, "gate": gate, "verdict": "pass" if passed else "FAIL"}
    if grad_gate is not None:
        figures |= {"grad_error": grad_error, "grad_gate": grad_gate}
    return figures


def _once(
    device: str = "cpu", *, small: bool = False, training: bool = False, repeats: int = 1
) -> Iterator[dict[str, Any]]:
    """``rows``: a check is not repeated, whatever ``bench all`` hands to all its parts."""
    if small and training:
        raise UserError("--small and --training are two choices of sizes: give one.")
    return rows(scope(device, small=small, training=training), device)


@dataclass(frozen=True)
class BenchOptions(DeviceOptions):
    """Every implementation against its reference."""

    small: bool = False
    """The fewest sizes that reach every path."""
    training: bool = False
    """Only what a preset's run takes: its implementations, types and sizes."""


BENCHMARK = Benchmark(
    _once, COLUMNS, key=("kernel", "impl", "n", "d", "dtype"), failures=failures, options=BenchOptions
)
