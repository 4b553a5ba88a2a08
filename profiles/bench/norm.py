"""The norm benchmark: batch norm, addition and ReLU, forward and backward, by every implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.norm import Options, batch_norm_act
from fastvicreg.profiles.bench.loss import relative_error
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions
from fastvicreg.profiles.measure import interleaved
from fastvicreg.registry import unknown

COLUMNS = (
    *("impl", "shape", "added", "views", "dtype", "device", "ms", "spread", "repeats", "ratio", "floor_ms"),
    *("error", "grad_error", "saved_bytes"),
)

DTYPES = ("float64", "float32", "bfloat16", "float16")
DEFAULT_DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}

IMAGES = {"cpu": 8, "cuda": 256}
"""Of each of two views, in the default shapes."""

LAYERS = ((64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (1024, 14), (2048, 7))
"""Channels and side of ResNet-50's norms at 224 px; those after a block's last convolution have an addition."""
WIDEST = {"cpu": 1024, "cuda": 8192}
"""Of the expander's norm, which is followed by a ReLU alone."""
EXPANSION = (256, 512, 1024, 2048)

VIEWS = 2
"""In the batch, one after another."""

Shape = tuple[int, ...]


def run(
    shapes: Sequence[Shape] | None = None, dtype: str | None = None, device: str = "cpu", repeats: int = 5
) -> list[dict[str, Any]]:
    """One row per shape (B, C, H, W) or (B, C), dtype and implementation, "torch" first.

    "torch" is what runs without this kernel: batch norm, addition and in-place ReLU, a view after another. ``ratio``
    is how many times faster than it. ``floor_ms`` is the time of copies that move what no fused form avoids: forward
    reads the input twice and writes the output (an addition is read too), backward reads input and gradient twice and
    writes the input's gradient (with an addition: the output is read and the addition's gradient written too).
    Errors are relative to fp64 on the same (rounded) tensors; ``saved_bytes`` is what backward's inputs take, the
    layer's own input and output included. ``UserError`` for an unknown ``dtype``.
    """
    return list(rows(shapes, dtype, device, repeats))


def rows(
    shapes: Sequence[Shape] | None = None, dtype: str | None = None, device: str = "cpu", repeats: int = 5
) -> Iterator[dict[str, Any]]:
    """The rows of ``run``, those of a shape as soon as they are known."""
    kind = torch.device(device).type
    if dtype is not None and dtype not in DTYPES:
        raise UserError(unknown("dtype", dtype, DTYPES))
    cases = [tuple(shape) for shape in shapes] if shapes else default_shapes(kind)
    names = (dtype,) if dtype else DEFAULT_DTYPES[kind]
    for name in names:
        for shape in cases:
            yield from _rows(shape, name, device, repeats)


def default_shapes(kind: str) -> list[Shape]:
    batch = VIEWS * IMAGES[kind]
    return [*((batch, channels, side, side) for channels, side in LAYERS), (batch, WIDEST[kind])]


def _rows(shape: Shape, name: str, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    added = len(shape) == 4 and shape[1] in EXPANSION
    layer = Layer(shape, added, getattr(torch, name), device)
    calls: dict[str, Callable[[], Any]] = {"torch": lambda: layer.differentiated(layer.torchs)}
    for impl in KERNELS["norm"].runnable(torch.device(device).type, layer.x.dtype):
        calls[impl] = lambda impl=impl: layer.differentiated(layer.by(impl))
    passes = (4 if added else 3) + (7 if added else 5)
    target = torch.empty_like(layer.x)
    timings = interleaved({**calls, "floor": lambda: target.copy_(layer.x)}, repeats=repeats, device=device)
    truth = Layer(shape, added, torch.float64, device, like=layer)
    wanted = truth.differentiated(truth.by("reference"))
    grads = len(layer.trained)
    for impl, call in calls.items():
        found = call()
        timing = timings[impl]
        yield {
            "impl": impl,
            "shape": "x".join(map(str, shape)),
            "added": added,
            "views": VIEWS,
            "dtype": name,
            "device": device,
            "ms": timing.ms,
            "spread": timing.spread,
            "repeats": timing.n,
            "ratio": timings["torch"].ms / timing.ms,
            "floor_ms": timings["floor"].ms * passes / 2,  # a copy reads and writes
            "error": relative_error([torch.cat(found[grads:])], wanted[grads:]),
            "grad_error": relative_error(found[:grads], wanted[:grads]),
            "saved_bytes": layer.saved_bytes(layer.torchs if impl == "torch" else layer.by(impl)),
        }


class Layer:
    """One norm's tensors."""

    def __init__(
        self,
        shape: Shape,
        added: bool,
        dtype: torch.dtype,
        device: str,
        *,
        like: Layer | None = None,
        seed: int = 0,
    ) -> None:
        """``like``: the values of another one, in this dtype."""
        wide = torch.promote_types(dtype, torch.float32)
        if like is None:
            generator = torch.Generator(device).manual_seed(seed)
            made = [torch.randn(shape, generator=generator, device=device) for _ in range(3)]
            made += [torch.linspace(0.5, 1.5, shape[1], device=device), torch.zeros(shape[1], device=device)]
        else:
            made = [like.x, like.residual, like.outer, like.weight_C, like.bias_C]
        made = [each.detach().to(dtype if place < 3 else wide) for place, each in enumerate(made)]
        if len(shape) == 4:
            made[:3] = [each.contiguous(memory_format=torch.channels_last) for each in made[:3]]
        self.x, self.residual, self.outer, self.weight_C, self.bias_C = made
        self.trained = [self.x, self.weight_C, self.bias_C, *([self.residual] if added else [])]
        for each in self.trained:
            each.requires_grad_()
        self.added = added
        self._running = torch.zeros_like(self.weight_C), torch.ones_like(self.weight_C)

    def by(self, impl: str) -> Callable[[], tuple[Tensor, ...]]:
        """The output by that implementation, both views in it."""
        residual = self.residual if self.added else None
        options = Options(views=VIEWS)
        return lambda: (
            batch_norm_act(
                self.x, self.weight_C, self.bias_C, residual=residual, running=self._running, options=options, impl=impl
            ),
        )

    def torchs(self) -> tuple[Tensor, ...]:
        """The outputs by torch, a view after another."""
        residuals = self.residual.chunk(VIEWS) if self.added else (None,) * VIEWS
        views = []
        for x, residual in zip(self.x.chunk(VIEWS), residuals, strict=True):
            y = torch.nn.functional.batch_norm(x, *self._running, self.weight_C, self.bias_C, True)
            views.append(torch.relu_(y if residual is None else y + residual))
        return tuple(views)

    def differentiated(self, run: Callable[[], tuple[Tensor, ...]]) -> list[Tensor]:
        """All gradients and the outputs."""
        outputs = run()
        grads = torch.autograd.grad(outputs, self.trained, self.outer.chunk(len(outputs)))
        return [*grads, *(y.detach() for y in outputs)]

    def saved_bytes(self, run: Callable[[], tuple[Tensor, ...]]) -> int:
        """Of all storages that backward keeps, each once; and the output, which the next layer keeps."""
        held: dict[int, Any] = {}

        def keep(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            for y in run():
                keep(y)
        return sum(storage.nbytes() for storage in held.values())


BENCHMARK = Benchmark(rows, COLUMNS, key=("impl", "shape", "added", "views", "dtype", "device"), options=DeviceOptions)
