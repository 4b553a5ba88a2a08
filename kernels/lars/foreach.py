"""The LARS update by torch._foreach: each arithmetic step is one call for many parameters, in the reference's order."""

# torch.optim's own optimizers are built on torch._foreach_*, which torch does not list as exported.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

DEVICE_SCALARS = True

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Of the parameters updated by one call. The decayed gradients of a chunk are held at a time: 16 and 256 MB in fp32."""

Triple = tuple[Tensor, Tensor, Tensor]


def update(
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
) -> None:
    """One step in place; on a CPU, and without scalars on the device, equal bit for bit to the reference."""
    if grad_scale is not None:
        grads = list(torch._foreach_div(grads, grad_scale))
    changed = [*params, *momentum_buffers]
    kept = [tensor.clone() for tensor in changed] if found_inf is not None else []
    _update(params, grads, momentum_buffers, lr, weight_decay, momentum, eta)
    if found_inf is not None:
        skipped = found_inf != 0
        torch._foreach_copy_(changed, [torch.where(skipped, old, new) for old, new in zip(kept, changed, strict=True)])


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    eta: float,
) -> None:
    for chunk in _chunks(zip(params, grads, momentum_buffers, strict=True)):
        chunk_params, directions, buffers = (list(column) for column in zip(*chunk, strict=True))
        if chunk_params[0].ndim != 1:
            directions = _adapted(chunk_params, directions, weight_decay, eta)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, directions)
        if isinstance(lr, Tensor):
            torch._foreach_sub_(chunk_params, torch._foreach_mul(buffers, lr.to(buffers[0])))
        else:
            torch._foreach_add_(chunk_params, buffers, alpha=-lr)


def _adapted(params: list[Tensor], grads: list[Tensor], weight_decay: float, eta: float) -> list[Tensor]:
    """Decayed gradients scaled by the trust ratio."""
    directions = list(torch._foreach_add(grads, params, alpha=weight_decay))
    param_norms = torch.stack(torch._foreach_norm(params))
    direction_norms = torch.stack(torch._foreach_norm(directions))
    ratios = eta * param_norms / direction_norms
    ratios = torch.where((param_norms > 0) & (direction_norms > 0), ratios, torch.ones_like(ratios))
    torch._foreach_mul_(directions, ratios.unbind())
    return directions


def _chunks(triples: Iterable[Triple]) -> Iterator[list[Triple]]:
    """Alike in device, dtype and in whether they are adapted, of ``CHUNK_ELEMENTS`` or one tensor at most."""
    open_chunks: dict[tuple[torch.device, torch.dtype, bool], list[Triple]] = {}
    held: dict[tuple[torch.device, torch.dtype, bool], int] = {}
    for triple in triples:
        param = triple[0]
        kind = param.device, param.dtype, param.ndim != 1
        limit = CHUNK_ELEMENTS["cpu" if param.device.type == "cpu" else "cuda"]
        if kind in open_chunks and held[kind] + param.numel() > limit:
            yield open_chunks.pop(kind)
        if kind not in open_chunks:
            open_chunks[kind], held[kind] = [], 0
        open_chunks[kind].append(triple)
        held[kind] += param.numel()
    yield from open_chunks.values()
