"""The norm as four passes over its input, which several processes join by one all-gather and one all-reduce.

Forward: statistics, (all-gather), then normalise with the addition and ReLU. Backward: sums, (all-reduce), gradient.
ReLU's mask is the output's sign, so that its input is not kept: computed from the norm's input again where there is no
addition, else of the output, which the next layer keeps anyway. Nothing here waits for the device.

Shape suffixes: V views in the batch, C channels, S parts, R processes, X one row of statistics: the number of values of
a channel in a view, V x C means, V x C sums of squared distances from them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastvicreg.kernels.norm.collectives import gathered, summed, traced
from fastvicreg.kernels.norm.options import Options
from fastvicreg.kernels.norm.recompute import remember

Running = tuple[Tensor, Tensor]
"""Running mean and variance, each (C,)."""


class Statistics(NamedTuple):
    """Of the whole batch, in fp32 (fp64 of fp64)."""

    mean_VC: Tensor
    scale_VC: Tensor
    """1 / sqrt(variance + eps)."""
    unbiased_VC: Tensor
    """Variance by count - 1, for the running one."""
    count_1: Tensor
    """Values of a channel in a view."""


class Passes(Protocol):
    """One way of computing the four."""

    def statistics(self, x: Tensor, views: int) -> Tensor:
        """(S, X): the rows of as many parts of the batch."""
        ...

    def merged(self, parts_SX: Tensor, views: int) -> Tensor:
        """(X,): one row of all parts."""
        ...

    def finished(self, parts_SX: Tensor, options: Options, running: Running | None) -> Statistics:
        """Statistics of all parts; the running ones are moved, view by view."""
        ...

    def normalised(
        self, x: Tensor, residual: Tensor | None, weight_C: Tensor, bias_C: Tensor, found: Statistics, options: Options
    ) -> Tensor:
        """The output, in the input's dtype and memory order."""
        ...

    def sums(
        self,
        grad: Tensor,
        x: Tensor,
        y: Tensor | None,
        weight_C: Tensor,
        bias_C: Tensor,
        found: Statistics,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        """(2, V, C): sums of the gradient at ReLU's input and of its product with the normalised input; that gradient.

        ``y`` is the output where there was an addition. Without one the gradient may be returned as it came, for
        ``gradient`` to mask again."""
        ...

    def gradient(
        self,
        masked: Tensor,
        x: Tensor,
        y: Tensor | None,
        weight_C: Tensor,
        bias_C: Tensor,
        found: Statistics,
        sums_2VC: Tensor,
        options: Options,
    ) -> Tensor:
        """The input's, from what ``sums`` returned, its sums being over all processes."""
        ...


def batch_norm_act(
    passes: Passes,
    x: Tensor,
    residual: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    running: Running | None,
    options: Options,
) -> Tensor:
    """As ``kernels.norm.batch_norm_act``, by those passes."""
    # A compiler takes no change of a buffer within a node of autograd: there it follows the node.
    within = running is not None and not traced(x)
    y, mean_VC, unbiased_VC = FusedNorm.apply(
        passes, x, residual, weight_C, bias_C, *(running if within and running else (None, None)), options
    )
    if running is not None and not within:
        move(running, mean_VC, unbiased_VC, options.momentum)
    return y


@torch.no_grad()
def move(running: Running, mean_VC: Tensor, unbiased_VC: Tensor, momentum: float) -> None:
    """The running statistics by each view's own, in the views' order, as one pass a view would."""
    for mean_C, unbiased_C in zip(mean_VC.unbind(), unbiased_VC.unbind(), strict=True):
        running[0].lerp_(mean_C.to(running[0].dtype), momentum)
        running[1].lerp_(unbiased_C.to(running[1].dtype), momentum)


class FusedNorm(torch.autograd.Function):
    """The four passes as one node."""

    @staticmethod
    def forward(
        ctx: Any,
        passes: Passes,
        x: Tensor,
        residual: Tensor | None,
        weight_C: Tensor,
        bias_C: Tensor,
        mean_C: Tensor | None,
        var_C: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts_SX = passes.statistics(x, options.views)
        if options.ranks > 1:
            parts_SX = gathered(passes.merged(parts_SX, options.views), options.ranks, options.group)
        running = None if mean_C is None or var_C is None else (mean_C, var_C)
        found = passes.finished(parts_SX, options, running)
        y = passes.normalised(x, residual, weight_C, bias_C, found, options)
        if options.recompute and not traced(x):
            remember(passes, x, residual, weight_C, bias_C, found, options, y)
        kept = y if options.relu and residual is not None else None
        ctx.save_for_backward(x, weight_C, bias_C, *found, kept)
        ctx.mark_non_differentiable(found.mean_VC, found.unbiased_VC)
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.options = passes, options
        ctx.added = residual is not None
        return y, found.mean_VC, found.unbiased_VC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, passes, options = grads[0], ctx.passes, ctx.options
        if grad is None:
            return (None,) * 8
        x, weight_C, bias_C, mean_VC, scale_VC, unbiased_VC, count_1, y = ctx.saved_tensors
        found = Statistics(mean_VC, scale_VC, unbiased_VC, count_1)
        sums_2VC, masked = passes.sums(grad, x, y, weight_C, bias_C, found, options)
        # Weight and bias get this process's own share, which DDP averages as every gradient.
        bias_grad_C, weight_grad_C = sums_2VC.sum(1).to(weight_C.dtype).unbind()
        if options.ranks > 1:
            sums_2VC = summed(sums_2VC, options.group)
        x_grad = passes.gradient(masked, x, y, weight_C, bias_C, found, sums_2VC, options)
        of_residual = masked if ctx.added else None
        return None, x_grad, of_residual, weight_grad_C, bias_grad_C, None, None, None
