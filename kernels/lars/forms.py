"""Other forms of LARS than the official one, as other methods' code has them; plain torch, by torch._foreach.

A form is an ``update`` with the official kernels' arguments, plus whether the parameters are decayed and adapted.
"""

# torch.optim's own optimizers are built on torch._foreach_*, which torch does not list as exported.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Update = Callable[..., None]


def raw_ratio(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    adapted: bool,
    lr: float,
    weight_decay: float,
    momentum: float,
    eta: float,
    clip: bool,
) -> None:
    """The ratio of the gradient before decay: solo-learn's LARS with ``clip``, NVIDIA apex's LARC without.

    q = eta ||p|| / (||g|| + weight_decay ||p|| + 1e-8), with ``clip`` min(q / lr, 1); u = q (g + weight_decay p). Where
    a norm is 0, and for what is not adapted, u = g, without decay. mu = momentum mu + u, p = p - lr mu.

    solo-learn (from lightning-bolts) has it with clip_lr and exclude_bias_n_norm in its CIFAR settings; SwAV and
    SimSiam's linear evaluation have LARC with clip=False around SGD, which leaves no parameter out.
    """
    directions = _raw_ratio(params, grads, lr, weight_decay, eta, clip=clip) if adapted else list(grads)
    torch._foreach_mul_(momentum_buffers, momentum)
    torch._foreach_add_(momentum_buffers, directions)
    torch._foreach_add_(params, momentum_buffers, alpha=-lr)


def tensorflow(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    adapted: bool,
    lr: float,
    weight_decay: float,
    momentum: float,
    eta: float,
) -> None:
    """google-research/simclr's lars_optimizer.py with classic momentum: the buffer holds steps, not directions.

    u = g + weight_decay p, q = eta ||p|| / ||u|| (1 where either norm is 0), mu = momentum mu + lr q u, p = p - mu.
    It differs from the official form while the learning rate changes. What is not adapted takes u = g and q = 1.
    """
    directions = list(grads)
    if adapted:
        directions = list(torch._foreach_add(grads, params, alpha=weight_decay))
        param_norms, direction_norms = _norms(params), _norms(directions)
        ratios = eta * param_norms / direction_norms
        ratios = torch.where((param_norms > 0) & (direction_norms > 0), ratios, torch.ones_like(ratios))
        torch._foreach_mul_(directions, ratios.unbind())
    torch._foreach_mul_(momentum_buffers, momentum)
    torch._foreach_add_(momentum_buffers, directions, alpha=lr)
    torch._foreach_sub_(params, momentum_buffers)


FORMS: dict[str, Update] = {
    "clipped": partial(raw_ratio, clip=True),
    "tensorflow": tensorflow,
    "larc": partial(raw_ratio, clip=False),
}
"""Beside "official", which has implementations of its own."""


def _raw_ratio(
    params: list[Tensor], grads: list[Tensor], lr: float, weight_decay: float, eta: float, *, clip: bool
) -> list[Tensor]:
    param_norms, grad_norms = _norms(params), _norms(grads)
    ratios = eta * param_norms / (grad_norms + weight_decay * param_norms + 1e-8)
    if clip:
        ratios = (ratios / lr).clamp_max(1.0)
    applies = (param_norms > 0) & (grad_norms > 0)
    decays = weight_decay * applies.to(param_norms.dtype)
    ratios = torch.where(applies, ratios, torch.ones_like(ratios))
    decayed = torch._foreach_mul(params, decays.unbind())
    directions = list(torch._foreach_add(grads, decayed))
    torch._foreach_mul_(directions, ratios.unbind())
    return directions


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))
