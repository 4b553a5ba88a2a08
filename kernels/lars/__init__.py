"""The LARS update: one function over lists of tensors, whose implementations are swapped by name."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.registry import resolve, unknown

__all__ = ["DEVICE_SCALARS", "IMPLEMENTATIONS", "choose", "choose_for", "lars_update"]

log = logging.getLogger(__name__)

IMPLEMENTATIONS = {
    "auto": "",
    "reference": "fastvicreg.kernels.lars.reference:update",
    "foreach": "fastvicreg.kernels.lars.foreach:update",
    "cuda": "fastvicreg.kernels.lars.cuda:update",
    "apex": "fastvicreg.kernels.lars.apex:update",
}

NEED_MORE = ("cuda", "apex")
"""Their modules have ``obstacle(device, dtype)``: why they cannot run on such parameters, or ""."""

DEVICE_SCALARS = ("cuda",)
"""These read learning rate, loss scale and found_inf on the device, so that a step can be captured and replayed."""


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

    "cuda" alone takes ``lr`` as an fp32 scalar on the device, and ``grad_scale`` (gradients are divided by it) and
    ``found_inf`` (where it is not 0 nothing changes), fp32 scalars there too: torch.amp.GradScaler's.

    "auto" is "cuda" for fp32 parameters on a GPU where it can run, else "foreach". Raises ``UserError`` for an unknown
    ``impl`` or one that cannot run here, ``ValueError`` where the tensors do not fit each other or it.
    """
    if not len(params) == len(grads) == len(momentum_buffers):
        counts = f"{len(params)}, {len(grads)} and {len(momentum_buffers)}"
        raise ValueError(f"LARS needs a gradient and a momentum buffer for every parameter, got {counts}")
    name = choose_for(impl, params)
    if not params:
        return
    options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta}
    if name in DEVICE_SCALARS:
        options |= {"grad_scale": grad_scale, "found_inf": found_inf}
    elif grad_scale is not None or found_inf is not None or (isinstance(lr, Tensor) and lr.device.type != "cpu"):
        raise ValueError(f"LARS by {name!r} takes lr as a number and unscaled gradients; impl='cuda' reads tensors")
    else:
        options["lr"] = float(lr)
    resolve("LARS implementation", name, IMPLEMENTATIONS)(params, grads, momentum_buffers, **options)


def choose_for(impl: str, params: Sequence[Tensor]) -> str:
    """``choose`` for these parameters; of several devices or dtypes, "auto" makes "foreach"."""
    kinds = {(device.type, dtype) for device, dtype in {(param.device, param.dtype) for param in params}}
    if len(kinds) > 1:
        return choose(impl, "mixed")
    return choose(impl, *(kinds or {("cpu", torch.float32)}).pop())


@functools.cache
def choose(impl: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """The name of the implementation for parameters of that type of device and dtype, logged once.

    Raises ``UserError`` for an unknown name, or for one that cannot run here, which is never replaced by another.
    """
    if impl not in IMPLEMENTATIONS:
        raise UserError(unknown("LARS implementation", impl, IMPLEMENTATIONS))
    name = impl
    if impl == "auto":
        name = "cuda" if device == "cuda" and not _obstacle("cuda", device, dtype) else "foreach"
    elif obstacle := _obstacle(impl, device, dtype):
        raise UserError(f"the LARS implementation {impl!r} cannot run here: {obstacle}; choose auto or foreach.")
    log.info("LARS implementation: %s (%s)", impl, IMPLEMENTATIONS[name])
    return name


def _obstacle(name: str, device: str, dtype: torch.dtype) -> str:
    if name not in NEED_MORE:
        return ""
    module, _, _ = IMPLEMENTATIONS[name].partition(":")
    return import_module(module).obstacle(device, dtype)
