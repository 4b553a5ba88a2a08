"""The loss as operators that torch.compile and CUDA graphs take whole: one forward, one backward, for every method.

A method is a module of this folder with three functions: ``forward``, ``backward`` and ``kept_shapes``. Forward keeps
the matrix and the column statistics, not the gradient: a loss scale then acts before any rounding to a half type,
N^2 values are kept in place of 2 N D wide ones, and a replayed graph finds all of it at fixed addresses either way.

Shape suffixes: N samples of this rank's batch, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from fastvicreg.kernels.loss.ranks import Ranks

Shape = tuple[int, ...]


class Weights(NamedTuple):
    """What scales the terms; ``branch_share`` weighs each branch's hinge: 0.5 official, 1 paper."""

    invariance: float
    variance: float
    covariance: float
    branch_share: float
    gamma: float
    eps: float


class Method(Protocol):
    """One way of computing the loss; ``ranks`` hold the global batch among them."""

    def forward(
        self, za_ND: Tensor, zb_ND: Tensor, weights: Weights, ranks: Ranks
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Tensor]]:
        """((total, invariance, variance, covariance), what backward needs): no tensor twice, none an input's view."""
        ...

    def backward(
        self,
        scale: Tensor,
        za_ND: Tensor,
        zb_ND: Tensor,
        kept: list[Tensor],
        weights: Weights,
        ranks: Ranks,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """``scale`` times the gradients of ``size`` times the total, for the views that need one.

        So that an average over the ranks, as DDP takes it, is the total's own gradient.
        """
        ...

    def kept_shapes(self, n: int, d: int, dtype: torch.dtype, ranks: Ranks) -> list[tuple[Shape, torch.dtype]]:
        """Of what ``forward`` keeps; n is this rank's."""
        ...


def _method(module: str) -> Method:
    return cast(Method, import_module(module))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which the terms are reduced."""
    return torch.promote_types(dtype, torch.float32)


@torch.library.custom_op("fastvicreg::vicreg_loss", mutates_args=())
def vicreg_terms(
    za_ND: Tensor, zb_ND: Tensor, weights: Sequence[float], method: str, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """(total, invariance, variance, covariance, what backward needs) by the method in that module."""
    with torch.autocast(za_ND.device.type, enabled=False):
        ranks = Ranks.named(group).compared(za_ND)
        terms, kept = _method(method).forward(za_ND, zb_ND, Weights(*weights), ranks)
    return *terms, kept


@vicreg_terms.register_fake
def _(za_ND: Tensor, zb_ND: Tensor, weights: Sequence[float], method: str, group: str) -> Any:
    n, d = za_ND.shape
    wide = wide_dtype(za_ND.dtype)
    kept = _method(method).kept_shapes(n, d, za_ND.dtype, Ranks.named(group))
    terms = (za_ND.new_empty((), dtype=wide) for _ in range(4))
    return *terms, [za_ND.new_empty(shape, dtype=dtype) for shape, dtype in kept]


@torch.library.custom_op("fastvicreg::vicreg_loss_backward", mutates_args=())
def _gradients(
    scale: Tensor,
    za_ND: Tensor,
    zb_ND: Tensor,
    kept: Sequence[Tensor],
    weights: Sequence[float],
    method: str,
    group: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Those needed alone, a before b."""
    need_a, need_b = needs
    with torch.autocast(za_ND.device.type, enabled=False):
        grads = _method(method).backward(
            scale, za_ND, zb_ND, list(kept), Weights(*weights), Ranks.named(group), (need_a, need_b)
        )
    return [grad_ND for grad_ND in grads if grad_ND is not None]


@_gradients.register_fake
def _(scale: Tensor, za_ND: Tensor, zb_ND: Tensor, *arguments: Any) -> list[Tensor]:
    *_, needs = arguments
    views = zip((za_ND, zb_ND), needs, strict=True)
    return [z_ND.new_empty(z_ND.shape) for z_ND, needed in views if needed]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    za_ND, zb_ND, *ctx.options = inputs
    *terms, kept = output
    ctx.save_for_backward(za_ND, zb_ND, *kept)
    ctx.mark_non_differentiable(*terms[1:], *kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, scale: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    # `once_differentiable` lets a second derivative pass as zero where the incoming gradient is a constant.
    if torch.is_grad_enabled():
        raise RuntimeError("this loss is differentiable once; for create_graph=True use impl='reference'")
    if scale is None:
        return (None,) * 5
    za_ND, zb_ND, *kept = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    found = iter(_gradients(scale, za_ND, zb_ND, kept, *ctx.options, needs))
    return *(next(found) if needed else None for needed in needs), None, None, None


vicreg_terms.register_autograd(_backward, setup_context=_keep)
