"""Momentum copies: target networks that follow a trained one by an exponential moving average."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastvicreg.encoders.drop_path import keep_all
from fastvicreg.optim import half_cosine


class MomentumCopy(nn.Module):
    """A network that no gradient reaches, beginning as a copy of ``online``.

    Its batch norms stay in the mode that its parent is in, with running statistics of their own: only parameters
    follow (byol/byol_experiment.py). Stochastic depth is the trained network's alone.
    """

    def __init__(self, online: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(online).requires_grad_(False)
        keep_all(self.network)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    @torch.no_grad()
    def follow(self, online: nn.Module, momentum: float | Tensor, finite: bool | Tensor) -> None:
        """``momentum`` of itself and the rest of ``online``; nothing where ``finite`` is not set.

        Both may be scalars on the device, which are not waited for.
        """
        if finite is False:
            return
        own: list[Tensor] = list(self.network.parameters())
        other: list[Tensor] = list(online.parameters())
        share = 1.0 - momentum
        if isinstance(finite, Tensor) or isinstance(share, Tensor):  # on the device: a share of 0 there
            weight = torch.where(torch.as_tensor(finite), share, 0.0).to(own[0])
            torch._foreach_lerp_(own, other, [weight] * len(own))  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_lerp_(own, other, share)  # pyright: ignore[reportPrivateImportUsage]


def rising_momentum(step: int, *, start: float, steps: int, end: float = 1.0) -> float:
    """The momentum of a step (byol/utils/schedules.py, target_ema)."""
    return half_cosine(step, start=start, end=end, steps=steps)
