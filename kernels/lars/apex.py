"""The LARS update by the multi-tensor kernels of NVIDIA's apex (``amp_C``), where that is built: a cross-check.

apex is built from NVIDIA's repository against the torch in use; ``apex`` on PyPI is another program.
"""

# torch.optim's own optimizers are built on torch._foreach_*, which torch does not list as exported.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

CHUNK = 65536
"""Elements a block takes: what apex's own optimizers ask for."""


def obstacle(device: str, dtype: torch.dtype) -> str:
    """Why this cannot update parameters of that type of device and dtype, or ""."""
    try:
        import_module("amp_C")
    except ImportError as error:
        return f"NVIDIA's apex with its CUDA extensions is not built ({error}); apex on PyPI is another program"
    if device != "cuda" or dtype != torch.float32:
        return f"it updates fp32 parameters on CUDA devices, not {dtype} on {device}"
    return ""


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
    """One step in place: apex's norms and its fused SGD, with the decayed and adapted gradients made between them."""
    amp_C = import_module("amp_C")
    triples = list(zip(params, grads, momentum_buffers, strict=True))
    for device in {param.device for param in params}:
        for adapted in (True, False):
            chosen = [t for t in triples if t[0].device == device and (t[0].ndim != 1) == adapted and t[0].numel()]
            if not chosen:
                continue
            own_params, directions, buffers = (list(column) for column in zip(*chosen, strict=True))
            never = torch.zeros(1, dtype=torch.int32, device=device)
            if adapted:
                directions = _adapted(amp_C, never, own_params, directions, weight_decay, eta)
            # Weight decay, dampening, Nesterov, first run, decay after momentum, scale: all done above or not wanted.
            lists = [directions, own_params, buffers]
            amp_C.multi_tensor_sgd(CHUNK, never, lists, 0.0, momentum, 0.0, lr, False, False, False, 1.0)


def _adapted(
    amp_C: Any, never: Tensor, params: list[Tensor], grads: list[Tensor], weight_decay: float, eta: float
) -> list[Tensor]:
    directions = list(torch._foreach_add(grads, params, alpha=weight_decay))
    _, param_norms = amp_C.multi_tensor_l2norm(CHUNK, never, [params], True)
    _, direction_norms = amp_C.multi_tensor_l2norm(CHUNK, never, [directions], True)
    ratios = eta * param_norms / direction_norms
    ratios = torch.where((param_norms > 0) & (direction_norms > 0), ratios, torch.ones_like(ratios))
    torch._foreach_mul_(directions, ratios.unbind())
    return directions
