"""The LARS update by ``lars.cu``: two passes over all tensors at once, which never wait for the device."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastvicreg.kernels.cuda import Launcher, Variant, kernel
from fastvicreg.kernels.cuda import obstacle as cuda_obstacle

SOURCE = "lars/lars.cu"
DEVICE_SCALARS = True
"""Learning rate, loss scale and found_inf are read on the device."""
THREADS = 256
CHUNK = 16384
"""Elements of a tensor that one block takes."""
RECORDS = 96
"""Tensors that one launch enters into the table, by value: no copy from the host, so that a captured step holds all."""

GRAD_TYPES = {torch.float32: "float", torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}
NAMES = ("parameter", "gradient", "buffer")
RECORD = np.dtype(
    [("param", "u8"), ("grad", "u8"), ("buffer", "u8"), ("size", "i8"), ("first_chunk", "i4"), ("adapted", "i4")]
)


def obstacle(device: str, dtype: torch.dtype) -> str:
    """Why this cannot update parameters of that type of device and dtype, or ""."""
    if device != "cuda":
        return f"it updates parameters on CUDA devices, not on {device}"
    if dtype != torch.float32:
        return f"it updates fp32 parameters, not {dtype}"
    return cuda_obstacle()


@dataclass(frozen=True)
class Table:
    """Where the tensors lie, on the device, and the room for their sums; chunks of adapted tensors come first."""

    records: Tensor  # (T, RECORD.itemsize) uint8
    tensor_of_chunk: Tensor  # (C,) int32
    sums: Tensor  # (adapted chunks, 2) float32
    ratios: Tensor  # (adapted tensors,) float32


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
    """One step in place, deterministic; ``lr``, ``grad_scale`` and ``found_inf`` may be scalars on the device.

    fp32 parameters and buffers, fp32, bf16 or fp16 gradients. May be captured in a CUDA graph once a step was taken
    outside it; the graph reads the scalars anew at each replay. Raises ``ValueError`` where a tensor is not on a CUDA
    device, or not dense, or where parameter, gradient and buffer differ in shape or strides.
    """
    for param, grad, buffer in zip(params, grads, momentum_buffers, strict=True):
        check(param, grad, buffer)
    check_scalars(lr, grad_scale, found_inf)
    lr_value, lr_tensor = (0.0, lr) if isinstance(lr, Tensor) else (float(lr), None)
    numbers = lr_value, lr_tensor, float(weight_decay), float(momentum), float(eta), grad_scale, found_inf
    if torch.compiler.is_compiling():
        lars_step(params, grads, momentum_buffers, *numbers)
    else:  # an operator's dispatch over hundreds of tensors takes the host longer than the launches
        _step(params, grads, momentum_buffers, *numbers)
        torch.autograd.graph.increment_version([*params, *momentum_buffers])


def _step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr_value: float,
    lr_tensor: Tensor | None,
    weight_decay: float,
    momentum: float,
    eta: float,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """``update`` as an operator that a compiled graph takes whole; ``lr_tensor`` comes before ``lr_value``."""
    kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor, Tensor]]] = {}
    for triple in zip(params, grads, momentum_buffers, strict=True):
        if triple[0].numel():
            kinds.setdefault((triple[0].device, triple[1].dtype), []).append(triple)
    for (device, grad_dtype), triples in kinds.items():
        run = _kernels(device, grad_dtype)
        table = _table(device, triples, grad_dtype)
        lr, scale, skip = (None if x is None else x.to(device) for x in (lr_tensor, grad_scale, found_inf))
        adapted, chunks = len(table.ratios), len(table.tensor_of_chunk)
        if adapted:
            norms = (table.records, table.tensor_of_chunk, table.sums, weight_decay, scale, skip)
            run["lars_norms"](len(table.sums), THREADS, *norms)
            run["lars_ratios"](adapted, THREADS, table.records, table.sums, table.ratios, eta, skip)
        places = (table.records, table.tensor_of_chunk, table.ratios)
        run["lars_apply"](chunks, THREADS, *places, lr_value, lr, weight_decay, momentum, scale, skip)


lars_step = torch.library.custom_op("fastvicreg::lars_step", _step, mutates_args=("params", "momentum_buffers"))


@lars_step.register_fake
def _(*arguments: object) -> None:
    return None


def check(param: Tensor, grad: Tensor, buffer: Tensor) -> None:
    """``ValueError`` unless the three are CUDA tensors that the kernel can walk through in the order of memory."""
    three = param, grad, buffer
    if not (param.is_cuda and param.get_device() == grad.get_device() == buffer.get_device()):
        wrong = "takes tensors on one CUDA device"
    elif param.dtype != torch.float32 or buffer.dtype != torch.float32 or grad.dtype not in GRAD_TYPES:
        wrong = "takes fp32 parameters and buffers, and fp32, bf16 or fp16 gradients"
    elif not param.shape == grad.shape == buffer.shape or not walk_alike(three):
        wrong = "takes dense tensors of one shape and equal strides"
    else:
        return
    found = ", ".join(f"{name} {describe(tensor)}" for name, tensor in zip(NAMES, three, strict=True))
    raise ValueError(f"LARS: impl='cuda' {wrong}, got {found}; impl='foreach' takes all.")


def check_scalars(*scalars: float | Tensor | None) -> None:
    """``ValueError`` unless those that are tensors are fp32 scalars on a CUDA device."""
    for scalar in scalars:
        if isinstance(scalar, Tensor) and (
            scalar.dtype != torch.float32 or scalar.numel() != 1 or scalar.device.type != "cuda"
        ):
            raise ValueError(f"LARS: lr, grad_scale and found_inf must be fp32 CUDA scalars, got {describe(scalar)}")


def describe(tensor: Tensor) -> str:
    """Shape, dtype, strides and device, for an error's line."""
    strides = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    return f"{tuple(tensor.shape)} {tensor.dtype} with strides {strides} on {tensor.device}"


def walk_alike(tensors: Sequence[Tensor]) -> bool:
    """Whether element after element in memory is the same element in each: contiguous, or permuted alike."""
    for order in (torch.contiguous_format, torch.channels_last):  # what a model has: to look closer takes the host 5 us
        if all(tensor.layout is torch.strided and tensor.is_contiguous(memory_format=order) for tensor in tensors):
            return True
    layouts = {_layout(tensor) for tensor in tensors}
    if len(layouts) != 1 or None in layouts:
        return False
    dense = 1
    for stride, size in sorted(layouts.pop() or ()):
        if stride != dense:
            return False
        dense *= size
    return True


def _layout(tensor: Tensor) -> tuple[tuple[int, int], ...] | None:
    """(stride, size) of each axis that is longer than 1; None for a sparse tensor."""
    if tensor.layout is not torch.strided:
        return None
    return tuple(pair for pair in zip(tensor.stride(), tensor.shape, strict=True) if pair[1] > 1)


@functools.cache
def _kernels(device: torch.device, grad_dtype: torch.dtype) -> dict[str, Launcher]:
    names = ("lars_table", "lars_norms", "lars_ratios", "lars_apply")
    return {name: kernel(SOURCE, name, defines=_defines(grad_dtype), device=device) for name in names}


def _defines(grad_dtype: torch.dtype) -> dict[str, str | int]:
    return {"GRAD": GRAD_TYPES[grad_dtype], "THREADS": THREADS, "CHUNK": CHUNK, "RECORDS": RECORDS}


def variants() -> list[Variant]:
    """What ``update`` compiles, one a type of gradient."""
    return [Variant(SOURCE, _defines(grad_dtype)) for grad_dtype in GRAD_TYPES]


Span = tuple[bool, int, int, int, int]
"""Not adapted, the addresses of parameter, gradient and buffer, and the number of elements."""


def _table(device: torch.device, triples: Iterable[tuple[Tensor, Tensor, Tensor]], grad_dtype: torch.dtype) -> Table:
    """The table of these tensors, kept for their addresses; one made in a captured step belongs to its graph."""
    spans = [(p.ndim == 1, p.data_ptr(), g.data_ptr(), b.data_ptr(), p.numel()) for p, g, b in triples]
    spans.sort(key=lambda span: span[0])
    stream = current_stream(device)
    make = _kept_table if stream is not None else _kept_table.__wrapped__
    return make(device, grad_dtype, stream, tuple(spans))


def current_stream(device: torch.device) -> int | None:
    """The stream that launches go to; None while it is captured."""
    if torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.current_stream(device).cuda_stream


@functools.lru_cache(maxsize=32)
def _kept_table(device: torch.device, grad_dtype: torch.dtype, stream: int | None, spans: tuple[Span, ...]) -> Table:
    records = np.zeros(len(spans), RECORD)
    one_dimensional, records["param"], records["grad"], records["buffer"], records["size"] = zip(*spans, strict=True)
    records["adapted"] = np.logical_not(one_dimensional)
    chunks = -(-records["size"] // CHUNK)
    records["first_chunk"] = np.cumsum(chunks) - chunks
    adapted = records["adapted"].astype(bool)
    table = Table(
        torch.empty(len(spans), RECORD.itemsize, dtype=torch.uint8, device=device),
        torch.empty(int(chunks.sum()), dtype=torch.int32, device=device),
        torch.empty(int(chunks[adapted].sum()), 2, device=device),
        torch.empty(int(adapted.sum()), device=device),
    )
    enter = _kernels(device, grad_dtype)["lars_table"]
    for first in range(0, len(records), RECORDS):
        group = np.zeros(RECORDS, RECORD)
        count = len(records[first : first + RECORDS])
        group[:count] = records[first : first + RECORDS]
        enter(count, THREADS, group.tobytes(), np.int32(first), table.records, table.tensor_of_chunk)
    return table
