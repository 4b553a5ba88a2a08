"""The norm by torch's native kernels in one node of autograd, which keeps its input, statistics and output alone.

The same kernels in the same order as torch's batch norm, addition and in-place ReLU: the same bits, on a CPU. A batch
of several views is normalised part by part into one tensor.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastvicreg.kernels.norm import fused, reference, torch_passes
from fastvicreg.kernels.norm.collectives import traced
from fastvicreg.kernels.norm.options import Options

aten = torch.ops.aten


def batch_norm_act(
    x: Tensor,
    residual: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    running: tuple[Tensor, Tensor] | None,
    options: Options,
) -> Tensor:
    """As ``kernels.norm.batch_norm_act``.

    By ``torch_passes`` among several processes, since torch's kernels give no statistics to share, and where the output
    is computed again. A compiler fuses the definition, which it sees through, better than an opaque operator.
    """
    if options.ranks == 1 and traced(x):
        return reference.batch_norm_act(x, residual, weight_C, bias_C, running, options)
    if options.ranks > 1 or options.recompute:
        return fused.batch_norm_act(torch_passes, x, residual, weight_C, bias_C, running, options)
    return NativeNorm.apply(x, residual, weight_C, bias_C, running, options)


class NativeNorm(torch.autograd.Function):
    """Forward and backward of one process."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight_C: Tensor,
        bias_C: Tensor,
        running: tuple[Tensor, Tensor] | None,
        options: Options,
    ) -> Tensor:
        settings = (weight_C, bias_C, *(running or (None, None)), True, options.momentum, options.eps)
        if options.views == 1:
            y, mean_VC, scale_VC = aten.native_batch_norm(x, *settings)
        else:
            y = torch.empty_like(x)
            wide = torch.promote_types(x.dtype, torch.float32)
            mean_VC, scale_VC = (x.new_empty(options.views, x.shape[1], dtype=wide) for _ in range(2))
            parts = zip(x.chunk(options.views), y.chunk(options.views), mean_VC, scale_VC, strict=True)
            for own_x, own_y, mean_C, scale_C in parts:
                aten.native_batch_norm.out(own_x, *settings, out=own_y, save_mean=mean_C, save_invstd=scale_C)
        if residual is not None:
            y.add_(residual)
        if options.relu:
            y.relu_()
        ctx.save_for_backward(x, weight_C, mean_VC, scale_VC, y if options.relu else None)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_VC, scale_VC, y = ctx.saved_tensors
        options: Options = ctx.options
        # The gradient of ReLU at its input's sign, which is its output's.
        grad = grads[0] if y is None else aten.threshold_backward(grads[0], y, 0)
        need_x, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
        of_residual = grad if need_residual else None
        if not (need_x or need_weight or need_bias):
            return None, of_residual, *(None,) * 4
        needs = (need_x, need_weight, need_bias)
        if options.views == 1:
            found = aten.native_batch_norm_backward(
                grad, x, weight_C, None, None, mean_VC, scale_VC, True, options.eps, needs
            )
            return found[0], of_residual, found[1], found[2], None, None
        parts = zip(grad.chunk(options.views), x.chunk(options.views), mean_VC, scale_VC, strict=True)
        each = [
            aten.native_batch_norm_backward(own, own_x, weight_C, None, None, mean_C, scale_C, True, options.eps, needs)
            for own, own_x, mean_C, scale_C in parts
        ]
        of_x, of_weight, of_bias = zip(*each, strict=True)
        return (
            torch.cat(of_x) if need_x else None,
            of_residual,
            functools.reduce(torch.add, of_weight) if need_weight else None,
            functools.reduce(torch.add, of_bias) if need_bias else None,
            None,
            None,
        )
