"""Stochastic depth (Huang et al., arXiv 1603.09382): in training a residual branch is left out for some samples.

The branches hold no generator: which samples they leave out a training step tells them, by ``Drops``, for each view and
branch (``train.drop_path``). Without a step, as in evaluation and fine-tuning, they leave out none.

Shape suffixes: B batch (of a view), V views, K residual branches that drop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.kernels.norm import activated


class Drops:
    """What the branches of a method's networks do in the pass that runs; shared by all, set around a step."""

    def __init__(self, seed: int, rates: tuple[float, ...]) -> None:
        """``rates`` are the branches' own, in their order."""
        self.seed, self.rates = seed, rates
        self.factor_VKB: Tensor | None = None
        """0 for a sample that a branch leaves out, else 1 / (1 - rate); None: all are kept."""
        self.view = 0
        """Number of the view, or of the first of the views, that goes through the network."""

    @contextmanager
    def during(self, factor_VKB: Tensor) -> Iterator[None]:
        """The branches drop by ``factor_VKB``."""
        self.factor_VKB, self.view = factor_VKB, 0
        try:
            yield
        finally:
            self.factor_VKB = None

    @contextmanager
    def part(self, number: int, count: int) -> Iterator[None]:
        """The pass is of this one of ``count`` parts of the batch."""
        whole_VKB = self.factor_VKB
        assert whole_VKB is not None
        self.factor_VKB = whole_VKB.chunk(count, 2)[number]
        try:
            yield
        finally:
            self.factor_VKB = whole_VKB


class DropPath(nn.Module):
    """A residual branch's output (B, ...), 0 for a share ``rate`` of the samples, else divided by 1 - ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.drops: Drops | None = None
        self.branch = 0
        """Its number among the method's, whose draws it takes."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` holds one view, or several that follow each other (``methods.views.each_view``)."""
        if not (self.training and self.rate) or self.drops is None or self.drops.factor_VKB is None:
            return x
        factor_VKB, first = self.drops.factor_VKB, self.drops.view
        views = len(x) // factor_VKB.shape[2]
        factor_B = factor_VKB[first : first + views, self.branch].flatten().to(x.dtype)
        return x * factor_B.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"{self.rate:g}"


def rising(rate: float, blocks: int) -> list[float]:
    """Each block's rate: from 0 at the first to ``rate`` at the last, linearly (DINO's and timm's rule)."""
    return [rate * place / max(1, blocks - 1) for place in range(blocks)]


def keep_all(network: nn.Module) -> None:
    """Let no branch of ``network`` leave out a sample, ever: of a target network."""
    for part in network.modules():
        if isinstance(part, DropPath):
            part.rate = 0.0


def added(norm: nn.Module, x: Tensor, kept: Tensor, drop: DropPath | None) -> Tensor:
    """``relu(norm(x) + kept)``: in one step where the norm can, and where there is no ``drop`` between the two."""
    if drop is None:
        return activated(norm, x, kept)
    return F.relu(drop(norm(x)) + kept, inplace=True)
