"""Batch norm with the addition and the ReLU that follow it: one function, whose implementations are swapped by name.

Shape suffixes: B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.norm.options import Options

choose, known = KERNELS["norm"].choose, KERNELS["norm"].known


def batch_norm_act(
    x: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    *,
    residual: Tensor | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    options: Options | None = None,
    impl: str = "auto",
) -> Tensor:
    """``relu(batch_norm(x) + residual)`` in training: by the batch's own mean and biased variance.

    Args:
        x: (B, C) or (B, C, H, W), best in channels_last memory order; fp64, fp32, bf16 or fp16 ("triton": not fp64).
        weight_C, bias_C: the scale and shift, fp32 beside half types.
        residual: of x's shape and dtype, added before ReLU; without it nothing is.
        running: mean and variance (unbiased), each (C,), which are moved by ``options.momentum``, once a view.
        options: ReLU or not, views that lie in the batch one after another, processes that share it.
        impl: "reference", "native", "triton", or "auto": triton on a GPU where it can run, else native.

    Returns:
        Of x's shape, dtype and memory order. Differentiable once ("reference": any number of times).

    Half types are summed in fp32. The gradient with several processes is as nn.SyncBatchNorm's: of the sum of their
    losses, weight and bias by each process's own rows, so that DistributedDataParallel's average is the gradient.

    Raises:
        ValueError: where the batch does not divide by the views, or holds one value a channel.
        UserError: for an unknown ``impl``, or one that cannot run there.
    """
    options = options or Options()
    _check(x, residual, options)
    if torch.compiler.is_compiling():
        run = _traced(_chosen(impl, x.device.type, x.dtype))
    else:
        run = choose(impl, x.device.type, x.dtype).function()
    return run(x, residual, weight_C, bias_C, running, options)


def _chosen(impl: str, device: str, dtype: torch.dtype) -> str:
    return choose(impl, device, dtype).name


# As in ``kernels.loss``: a compiler cannot trace its import and its log line, and takes no function for a constant.
_chosen._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _traced(name: str) -> Callable[..., Tensor]:
    """The function of an implementation that a compiler can follow."""
    if name == "triton":
        from fastvicreg.kernels.norm.triton_impl import batch_norm_act as run
    elif name == "reference":
        from fastvicreg.kernels.norm.reference import batch_norm_act as run
    else:
        from fastvicreg.kernels.norm.native import batch_norm_act as run
    return run


def _check(x: Tensor, residual: Tensor | None, options: Options) -> None:
    if x.ndim < 2:
        raise ValueError(f"a batch norm takes (B, C) or (B, C, H, W), got {tuple(x.shape)}")
    if x.shape[0] % options.views:
        raise ValueError(f"a batch of {x.shape[0]} does not hold {options.views} views of one size")
    if x.numel() // max(x.shape[1], 1) * options.ranks // options.views < 2:
        raise ValueError(f"a variance needs more than one value a channel, got {tuple(x.shape)}: give a larger batch")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"the residual {tuple(residual.shape)} must have the input's shape {tuple(x.shape)}")
