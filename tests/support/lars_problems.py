"""LARS updates with the truth in fp64, of shapes that try every tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastvicreg.kernels.lars import reference

OPTIONS: dict[str, Any] = {"weight_decay": 0.01, "momentum": 0.9, "eta": 0.02}
SHAPES = ((16, 3, 7, 7), (16,), (33, 65), (1, 130), (), (5, 4), (257,), (0, 3), (1,), (1, 1), (256,), (4, 64), (3, 343))
"""Tails of every length, one element, one chunk exactly and one short of it, a scalar, nothing."""

ROUNDING = 5e-7


@dataclass
class Problem:
    """Parameters, the gradients of some steps, and buffers."""

    params: list[Tensor]
    grads: list[list[Tensor]]
    buffers: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buffers = [torch.zeros_like(param) for param in self.params]

    def to(self, place: Callable[[Tensor], Tensor]) -> Problem:
        moved = Problem(list(map(place, self.params)), [list(map(place, grads)) for grads in self.grads])
        moved.buffers = list(map(place, self.buffers))
        return moved


def problem(shapes: tuple[tuple[int, ...], ...] = SHAPES, steps: int = 1, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    draws = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps + 1)]
    return Problem(draws[0], draws[1:])


def by_reference(start: Problem, lr: float = 0.5, scale: float = 1.0) -> Problem:
    """The same steps in fp64."""
    truth = start.to(lambda tensor: tensor.double())
    for grads in truth.grads:
        reference.update(truth.params, [grad / scale for grad in grads], truth.buffers, lr=lr, **OPTIONS)
    return truth


def assert_close(found: Problem, truth: Problem) -> None:
    """Each tensor to a few roundings of its largest element."""
    for number, pair in enumerate(zip(found.params + found.buffers, truth.params + truth.buffers, strict=True)):
        own, true = (tensor.cpu().double() for tensor in pair)
        if own.numel():
            error = float((own - true).abs().max() / true.abs().max().clamp(min=1e-30))
            assert error < ROUNDING, f"tensor {number} of shape {tuple(own.shape)} is off by {error:.1e} of its largest"
