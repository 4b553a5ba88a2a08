"""The LARS update: one function over lists of tensors, whose implementations are swapped by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvicreg.kernels.dispatch import KERNELS, Implementation

__all__ = ["choose", "choose_for", "lars_update", "reads_device_scalars"]

choose = KERNELS["lars"].choose


@torch.no_grad()
def lars_update(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    eta: float,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    impl: str = "auto",
) -> None:
    """One LARS step in place on ``params`` and ``momentum_buffers``; ``grads`` are only read.

    For each parameter p with gradient g and buffer mu: u = g + weight_decay p, q = eta ||p|| / ||u|| (1 where either
    norm is 0), mu = momentum mu + q u, p = p - lr mu. One-dimensional parameters (biases, norms) take u = g and q = 1
    (official main_vicreg.py; no epsilon, unlike other libraries). Buffers start as zeros. Never synchronises with
    the device.

    "cuda" and "foreach" take ``lr`` as an fp32 scalar on the device too, and ``grad_scale`` (gradients are divided by
    it) and ``found_inf`` (where it is not 0 nothing changes), fp32 scalars there: torch.amp.GradScaler's. "foreach"
    copies weights and momentum to be able to skip.

    "auto" is "cuda" for fp32 parameters on a GPU where it can run, else "foreach". Raises ``UserError`` for an unknown
    ``impl`` or one that cannot run here, ``ValueError`` where the tensors do not fit each other or it.
    """
    if not len(params) == len(grads) == len(momentum_buffers):
        counts = f"{len(params)}, {len(grads)} and {len(momentum_buffers)}"
        raise ValueError(f"LARS needs a gradient and a momentum buffer for every parameter, got {counts}")
    chosen = choose_for(impl, params)
    if not params:
        return
    options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta}
    if reads_device_scalars(chosen):
        options |= {"grad_scale": grad_scale, "found_inf": found_inf}
    elif grad_scale is not None or found_inf is not None or (isinstance(lr, Tensor) and lr.device.type != "cpu"):
        raise ValueError(
            f"LARS by {chosen.name!r} takes lr as a number and unscaled gradients; 'cuda' and 'foreach' read tensors"
        )
    else:
        options["lr"] = float(lr)
    chosen.function()(params, grads, momentum_buffers, **options)


def choose_for(impl: str, params: Sequence[Tensor]) -> Implementation:
    """``choose`` for these parameters; of several devices or dtypes, "auto" makes "foreach"."""
    kinds = {(device.type, dtype) for device, dtype in {(param.device, param.dtype) for param in params}}
    if len(kinds) > 1:
        return choose(impl, "mixed", torch.float32)
    return choose(impl, *(kinds or {("cpu", torch.float32)}).pop())


def reads_device_scalars(implementation: Implementation) -> bool:
    """Whether it reads learning rate, loss scale and found_inf on the device, so that a captured step can be replayed.

    Its module then says ``DEVICE_SCALARS = True``.
    """
    return getattr(implementation.module(), "DEVICE_SCALARS", False)
