"""Norms with an addition and ReLU on made data, and what each implementation makes of them.

Shape suffixes: B batch, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvicreg.kernels.norm import Options, batch_norm_act


class Case(NamedTuple):
    """What is normalised and how."""

    shape: tuple[int, ...]
    views: int = 1
    added: bool = False
    relu: bool = True

    def __str__(self) -> str:
        plus, relu = "+" if self.added else "", "relu" if self.relu else "linear"
        return f"{'x'.join(map(str, self.shape))}-{self.views}{plus}-{relu}"


SHAPES = ((2, 16), (6, 7), (130, 96), (2, 3, 5, 5), (6, 160, 4, 4), (4, 24, 33, 9))
CASES = [
    Case(shape, views, added, relu)
    for shape, views, (added, relu) in itertools.product(SHAPES, (1, 2), ((False, True), (True, True), (False, False)))
    if shape[0] * max(1, len(shape) - 2) > views * 2 or shape[0] > 2
]
NAMES = ("output", "input", "residual", "weight", "bias", "running mean", "running variance")


class Problem(NamedTuple):
    """Tensors of one case."""

    x: Tensor
    residual: Tensor
    weight_C: Tensor
    bias_C: Tensor
    outer: Tensor
    """Gradient of the output."""


def problem(case: Case, dtype: torch.dtype, *, offset: float = 1.0, nhwc: bool = True) -> Problem:
    """Off centre, channels of unequal spread, a scale that is 0 and one that is negative."""
    generator = torch.Generator().manual_seed(sum(case.shape))
    x, residual, outer = (torch.randn(case.shape, generator=generator, dtype=torch.float64) for _ in range(3))
    c = case.shape[1]
    spread_C = torch.linspace(0.3, 3, c, dtype=torch.float64).view(1, c, *(1,) * (x.ndim - 2))
    made = [(offset + x * spread_C).to(dtype), residual.to(dtype), outer.to(dtype)]
    if nhwc and x.ndim == 4:
        made = [each.contiguous(memory_format=torch.channels_last) for each in made]
    wide = torch.promote_types(dtype, torch.float32)
    weight_C = torch.linspace(-0.5, 1.5, c, dtype=wide)
    weight_C[c // 2] = 0
    return Problem(made[0], made[1], weight_C, torch.linspace(0.4, -0.5, c, dtype=wide), made[2])


def outcome(made: Problem, case: Case, run: Callable[..., Tensor] | None = None, **options: Any) -> list[Tensor]:
    """The tensors that ``NAMES`` names; the residual's is of no elements where nothing is added."""
    inputs = [each.clone().detach().requires_grad_() for each in made[:4]]
    x, residual, weight_C, bias_C = inputs
    running = torch.zeros_like(weight_C.detach()), torch.ones_like(weight_C.detach())
    settings = Options(relu=case.relu, views=case.views)
    added = residual if case.added else None
    if run is None:
        y = batch_norm_act(x, weight_C, bias_C, residual=added, running=running, options=settings, **options)
    else:
        y = run(x, added, weight_C, bias_C, running, settings)
    used = [each for each in inputs if case.added or each is not residual]
    grads = list(torch.autograd.grad(y, used, made.outer))
    if not case.added:
        grads.insert(1, torch.empty(0))
    return [y.detach(), *grads, *running]


def truth(made: Problem, case: Case) -> list[Tensor]:
    """The definition in fp64 on the same (rounded) values."""
    return outcome(Problem(*(each.double() for each in made)), case, impl="reference")


def disagreements(found: list[Tensor], wanted: list[Tensor], near: float) -> list[str]:
    """Which of ``NAMES`` differ by more than that share of their norm."""
    bad = []
    for name, value, other in zip(NAMES, found, wanted, strict=True):
        difference = (value.double() - other.double()).norm()
        # The gradient of a channel's constant share vanishes: held against one of order 1 then.
        if not difference <= near * max(other.double().norm().item(), value.numel() ** 0.5 * 1e-2):
            bad.append(f"{name}: {difference.item():.2e} of {other.double().norm().item():.2e}")
    return bad
