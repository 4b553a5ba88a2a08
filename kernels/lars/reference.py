"""The definition of the LARS update, one parameter after another: what the other implementations are held against."""

from __future__ import annotations

import torch
from torch import Tensor


def update(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    eta: float,
) -> None:
    """One step in place, as the official main_vicreg.py takes it."""
    for param, grad, buffer in zip(params, grads, momentum_buffers, strict=True):
        direction = grad
        if param.ndim != 1:
            direction = grad.add(param, alpha=weight_decay)
            direction = direction.mul(_trust_ratio(torch.norm(param), torch.norm(direction), eta))
        buffer.mul_(momentum).add_(direction)
        param.add_(buffer, alpha=-lr)


def _trust_ratio(param_norm: Tensor, direction_norm: Tensor, eta: float) -> Tensor:
    ratio = eta * param_norm / direction_norm
    return torch.where((param_norm > 0) & (direction_norm > 0), ratio, torch.ones_like(ratio))
