"""The loss as one step of autograd, forward and backward, for every method; to a compiler as operators it takes whole.

A method is a module of this folder with three functions: ``forward``, ``backward`` and ``kept_shapes``. Forward keeps
the matrix and the column statistics, not the gradient: a loss scale then acts before any rounding to a half type,
N^2 values are kept in place of 2 N D wide ones, and a replayed graph finds all of it at fixed addresses either way.

Shape suffixes: N samples of this rank's batch, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.nn import Parameter

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


PLAIN = {Tensor, Parameter}
"""What is no tracer's tensor, nor another library's."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which the terms are reduced."""
    return torch.promote_types(dtype, torch.float32)


def vicreg_terms(
    za_ND: Tensor, zb_ND: Tensor, weights: Weights, method: str, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, invariance, variance, covariance) by the method in that module; ``total`` carries the gradient."""
    # An operator's dispatch takes the host longer than what a small batch's loss launches: tracers alone need it.
    if torch.compiler.is_compiling() or not {type(za_ND), type(zb_ND)} <= PLAIN:
        return vicreg_operator(za_ND, zb_ND, weights, method, group)[:4]
    return VICRegLoss.apply(za_ND, zb_ND, weights, method, group)[:4]


def _forward(
    za_ND: Tensor, zb_ND: Tensor, weights: Sequence[float], method: str, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """The terms and what backward needs."""
    with without_autocast(za_ND.device.type):
        ranks = Ranks.named(group).compared(za_ND)
        terms, kept = _method(method).forward(za_ND, zb_ND, Weights(*weights), ranks)
    return *terms, kept


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
    with without_autocast(za_ND.device.type):
        grads = _method(method).backward(
            scale, za_ND, zb_ND, list(kept), Weights(*weights), Ranks.named(group), (need_a, need_b)
        )
    return [grad_ND for grad_ND in grads if grad_ND is not None]


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast off inside; nothing at all where it is off."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


vicreg_operator = torch.library.custom_op("fastvicreg::vicreg_loss", _forward, mutates_args=())
_gradients_operator = torch.library.custom_op("fastvicreg::vicreg_loss_backward", _gradients, mutates_args=())


@vicreg_operator.register_fake
def _(za_ND: Tensor, zb_ND: Tensor, weights: Sequence[float], method: str, group: str) -> Any:
    n, d = za_ND.shape
    wide = wide_dtype(za_ND.dtype)
    kept = _method(method).kept_shapes(n, d, za_ND.dtype, Ranks.named(group))
    terms = (za_ND.new_empty((), dtype=wide) for _ in range(4))
    return *terms, [za_ND.new_empty(shape, dtype=dtype) for shape, dtype in kept]


@_gradients_operator.register_fake
def _(scale: Tensor, za_ND: Tensor, zb_ND: Tensor, *arguments: Any) -> list[Tensor]:
    *_, needs = arguments
    views = zip((za_ND, zb_ND), needs, strict=True)
    return [z_ND.new_empty(z_ND.shape) for z_ND, needed in views if needed]


def _keep(ctx: Any, inputs: tuple[Any, ...], terms: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    za_ND, zb_ND, *ctx.options = inputs
    ctx.save_for_backward(za_ND, zb_ND, *kept)
    ctx.mark_non_differentiable(*terms[1:], *kept)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, scale: Tensor | None, gradients: Callable[..., list[Tensor]]) -> tuple[Tensor | None, ...]:
    # `once_differentiable` lets a second derivative pass as zero where the incoming gradient is a constant.
    if torch.is_grad_enabled():
        raise RuntimeError("this loss is differentiable once; for create_graph=True use impl='reference'")
    if scale is None:
        return (None,) * 5
    za_ND, zb_ND, *kept = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    found = iter(gradients(scale, za_ND, zb_ND, kept, *ctx.options, needs))
    return *(next(found) if needed else None for needed in needs), None, None, None


vicreg_operator.register_autograd(
    lambda ctx, scale, *_: _differentiate(ctx, scale, _gradients_operator),
    setup_context=lambda ctx, inputs, output: _keep(ctx, inputs, output[:4], output[4]),
)


class VICRegLoss(torch.autograd.Function):
    """The same without an operator's dispatch."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *terms, kept = _forward(*arguments)
        return *terms, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep(ctx, inputs, output[:4], output[4:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _differentiate(ctx, grads[0], _gradients)
