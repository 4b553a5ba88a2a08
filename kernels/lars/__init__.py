"""The LARS update: one function over lists of tensors, whose implementations are swapped by name."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fastvicreg.registry import resolve

__all__ = ["IMPLEMENTATIONS", "choose", "lars_update"]

log = logging.getLogger(__name__)

IMPLEMENTATIONS = {
    "auto": "fastvicreg.kernels.lars.foreach:update",
    "reference": "fastvicreg.kernels.lars.reference:update",
    "foreach": "fastvicreg.kernels.lars.foreach:update",
}


@torch.no_grad()
def lars_update(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    eta: float,
    impl: str = "auto",
) -> None:
    """One LARS step in place on ``params`` and ``momentum_buffers``; ``grads`` are only read.

    For each parameter p with gradient g and buffer mu: u = g + weight_decay p, q = eta ||p|| / ||u|| (1 where either
    norm is 0), mu = momentum mu + q u, p = p - lr mu. One-dimensional parameters (biases, norms) take u = g and q = 1
    (official main_vicreg.py; no epsilon, unlike other libraries). Buffers start as zeros. Never synchronises with
    the device. Raises ``UserError`` for an unknown ``impl``.
    """
    if not len(params) == len(grads) == len(momentum_buffers):
        counts = f"{len(params)}, {len(grads)} and {len(momentum_buffers)}"
        raise ValueError(f"LARS needs a gradient and a momentum buffer for every parameter, got {counts}")
    update = choose(impl)
    if params:
        update(params, grads, momentum_buffers, lr=lr, weight_decay=weight_decay, momentum=momentum, eta=eta)


@functools.cache
def choose(impl: str) -> Callable[..., None]:
    """The implementation of that name, logged once; ``UserError`` for an unknown one."""
    update = resolve("LARS implementation", impl, IMPLEMENTATIONS)
    log.info("LARS implementation: %s (%s)", impl, IMPLEMENTATIONS[impl])
    return update
