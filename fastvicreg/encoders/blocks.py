"""Residual blocks one after another, of which a training step may keep no more than what each is given.

Activation checkpointing (Chen et al., arXiv 1604.06174); ``train.recomputed`` says how a block is computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Blocks(nn.Sequential):
    """A stage of an encoder: ``nn.Sequential``, with its parameters' names."""

    again: Callable[[nn.Module, Tensor], Tensor] | None = None
    """Runs a block so that backward computes it again; without it autograd keeps what the blocks give it."""

    def forward(self, input: Tensor) -> Any:  # torch's name
        if self.again is None or not torch.is_grad_enabled():
            return super().forward(input)
        for block in self:
            input = self.again(block, input)
        return input
