"""Every kernel's every implementation against its reference, on fresh random data, with poisoned memory: no times.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.kernels.augment import augment
from fastvicreg.kernels.lars import IMPLEMENTATIONS as LARS_IMPLEMENTATIONS
from fastvicreg.kernels.lars import lars_update
from fastvicreg.kernels.loss import IMPLEMENTATIONS as LOSS_IMPLEMENTATIONS
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.profiles.bench.augment import official_params, photo_like
from fastvicreg.profiles.bench.loss import REFERENCE_LIMIT, embeddings, forward_backward, relative_error

COLUMNS = ("kernel", "impl", "n", "d", "dtype", "error", "gate", "grad_error", "grad_gate", "verdict")

LOSS_GATE, GRAD_GATE = 1e-3, 1e-2
LARS_GATE = 1e-5
AUGMENT_GATES = {"float32": 2.0, "float16": 2.0, "bfloat16": 3.0}
"""Levels of 255, at most: hue's float arithmetic rounds to a neighbouring level, bfloat16 holds 8 bits."""

SIZES: dict[str, Sequence[tuple[int, int]]] = {
    "cuda": (*((n, d) for d in (2048, 8192) for n in (256, 1000, 2048, 4096, 8192)), (257, 1001), (1001, 257), (2, 7)),
    "cpu": ((256, 512), (100, 64), (64, 64), (37, 101), (2, 7)),
    "small": ((64, 160), (160, 64), (33, 47), (2, 7)),
}


def run(device: str = "cpu", *, small: bool = False, seed: int | None = None) -> list[dict[str, Any]]:
    """One row a kernel, implementation, size and type; ``verdict`` is "pass", "FAIL" or why it does not run here.

    ``small`` takes the fewest sizes that reach every path, for a run under compute-sanitizer. Without ``seed`` the
    data differ at each call, and the rows name it.
    """
    seed = torch.seed() % 2**31 if seed is None else seed
    kind = torch.device(device).type
    with poisoned():
        rows = [
            *_loss(device, SIZES["small" if small else kind], seed),
            *_replay(device, seed),
            *_lars(device, seed),
            *_augment(device, 32 if small else 224, seed),
        ]
    return [{**row, "device": device, "seed": seed} for row in rows]


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
    return sum(row["verdict"] == "FAIL" for row in rows)


def _loss(device: str, sizes: Sequence[tuple[int, int]], seed: int) -> Iterator[dict[str, Any]]:
    for n, d in sizes:
        # Of two samples a half type's rounding is the whole variance: nothing to hold a gate against.
        for dtype in ("float32", "bfloat16", "float16") if n > 2 else ("float32",):
            za_ND, zb_ND = (_off_the_hinge(z_ND) for z_ND in embeddings(n, d, seed, getattr(torch, dtype), device))
            truth = forward_backward(
                za_ND.double(), zb_ND.double(), "reference" if n * d * d <= REFERENCE_LIMIT else "gram"
            )()
            for impl in _others(LOSS_IMPLEMENTATIONS):
                row = {"kernel": "loss", "impl": impl, "n": n, "d": d, "dtype": dtype}
                try:
                    loss, *grads = forward_backward(za_ND, zb_ND, impl)()
                except UserError as error:
                    yield row | {"verdict": str(error)}
                    continue
                errors = relative_error([loss], truth[:1]), relative_error(grads, truth[1:])
                yield row | _judged(*errors, gate=LOSS_GATE, grad_gate=GRAD_GATE)


def _off_the_hinge(z_ND: Tensor) -> Tensor:
    """The embeddings without columns whose deviation is nearly 1: there the gradient jumps, and rounding decides."""
    near_D = (z_ND.double().std(0) - 1).abs() < 0.05
    return z_ND * torch.where(near_D, 1.25, 1.0).to(z_ND.dtype)


def _replay(device: str, seed: int) -> Iterator[dict[str, Any]]:
    """A captured step of the loss, replayed on other data, against the same step run anew."""
    if not device.startswith("cuda"):
        return
    n, d = 256, 512
    for impl in _others(LOSS_IMPLEMENTATIONS):
        row = {"kernel": "loss, graph replay", "impl": impl, "n": n, "d": d, "dtype": "bfloat16"}
        za_ND, zb_ND = (z_ND.requires_grad_() for z_ND in embeddings(n, d, seed, torch.bfloat16, device))
        try:
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
        except UserError as error:
            yield row | {"verdict": str(error)}
            continue
        others = embeddings(n, d, seed + 1, torch.bfloat16, device)
        with torch.no_grad():
            za_ND.copy_(others[0])
            zb_ND.copy_(others[1])
        graph.replay()
        anew = forward_backward(*others, impl)()
        errors = relative_error([total.detach()], anew[:1]), relative_error(grads, anew[1:])
        yield row | _judged(*errors, gate=1e-6, grad_gate=1e-6)


def _lars(device: str, seed: int) -> Iterator[dict[str, Any]]:
    shapes = [(64, 3, 7, 7), (64,), (1,), (1, 1), (513, 257), (8191,), (4096, 129), (3, 5)]
    generator = torch.Generator().manual_seed(seed)
    start = [0.1 * torch.randn(shape, generator=generator) for shape in shapes]
    grads = [[torch.randn(shape, generator=generator).to(device) for shape in shapes] for _ in range(3)]
    start[3].zero_()  # a norm of zero: not adapted
    found = {}
    for impl in ("reference", *_others(LARS_IMPLEMENTATIONS)):
        params = [tensor.clone().to(device) for tensor in start]
        buffers = [torch.zeros_like(param) for param in params]
        row = {"kernel": "lars", "impl": impl, "n": len(shapes), "d": sum(map(torch.numel, start)), "dtype": "float32"}
        try:
            for step in grads:
                lars_update(params, step, buffers, lr=0.3, weight_decay=1e-2, momentum=0.9, eta=0.1, impl=impl)
        except UserError as error:
            yield row | {"verdict": str(error)}
            continue
        found[impl] = params
        if impl != "reference":
            yield row | _judged(relative_error(params, found["reference"]), gate=LARS_GATE)


def _augment(device: str, size: int, seed: int) -> Iterator[dict[str, Any]]:
    batch = 16
    crops_BVHWC, params_BVP = photo_like(batch, size, seed), official_params(batch, seed)
    levels = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
    truth = augment(crops_BVHWC, params_BVP, impl="reference", **levels)
    for impl in ("cuda",) if device.startswith("cuda") else ("numba",):
        for dtype, gate in AUGMENT_GATES.items():
            row = {"kernel": "augment", "impl": impl, "n": batch, "d": size, "dtype": dtype}
            try:
                views = augment(crops_BVHWC.to(device), params_BVP, impl=impl, dtype=getattr(torch, dtype), **levels)
            except UserError as error:
                yield row | {"verdict": str(error)}
                continue
            worst = max(float((view.float().cpu() - true).abs().max()) for view, true in zip(views, truth, strict=True))
            yield row | _judged(worst, gate=gate)


def _others(implementations: dict[str, str]) -> tuple[str, ...]:
    return tuple(name for name in implementations if name not in ("auto", "reference"))


def _judged(error: float, grad_error: float = 0.0, *, gate: float, grad_gate: float | None = None) -> dict[str, Any]:
    """NaN passes no gate."""
    passed = error <= gate and (grad_gate is None or grad_error <= grad_gate)
    figures: dict[str, Any] = {"error": error, "gate": gate, "verdict": "pass" if passed else "FAIL"}
    if grad_gate is not None:
        figures |= {"grad_error": grad_error, "grad_gate": grad_gate}
    return figures
