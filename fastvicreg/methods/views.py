"""How a method takes its views through a network: one after another, or those of one size as one batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastvicreg.errors import UserError
from fastvicreg.kernels.norm import JointViews, recomputing

Network = nn.Module | Callable[..., Any]


def each_view(network: Network, views: Sequence[Tensor], *, first: int = 0, **options: Any) -> list[Any]:
    """``[network(view, **options) for view in views]``, as fast as ``network`` can; each a tensor, or a tuple of them.

    Where ``train.batch_norm.replace_norms`` made it ready (``--views joint``), neighbours of one shape go through as
    one batch, in which each view keeps statistics of its own: the same outputs and running statistics, at half the
    launches and collectives. Where it was told so (``--activations recompute``), outputs of norms are not kept.
    ``first`` is the first view's number among the batch's, which stochastic depth draws by.
    """
    with recomputing() if getattr(network, "recompute", False) and not torch.compiler.is_compiling() else nullcontext():
        return _each_view(network, views, getattr(network, "joint_views", None), first, options)


def _each_view(
    network: Network, views: Sequence[Tensor], joint: JointViews | None, first: int, options: dict[str, Any]
) -> list[Any]:
    if joint is None:
        return [_at(network, first + place)(view, **options) for place, view in enumerate(views)]
    results: list[Any] = []
    for _, alike in itertools.groupby(views, key=lambda view: view.shape):
        batch = list(alike)
        _at(network, first + len(results))
        if len(batch) == 1:
            results.append(network(batch[0], **options))
        else:
            with counted(joint, len(batch)):
                results += _parted(network(torch.cat(batch), **options), len(batch))
    return results


def _at(network: Network, view: int) -> Network:
    """``network``, in which stochastic depth, where there is any, has come to the draws of ``view``."""
    if (drops := getattr(network, "drops", None)) is not None:
        drops.view = view
    return network


def _parted(result: Any, count: int) -> list[Any]:
    """A joint batch's result as one of each view."""
    if isinstance(result, tuple):
        return list(zip(*(part.chunk(count) for part in result), strict=True))
    return list(result.chunk(count))


def each_branch(network_a: nn.Module, network_b: nn.Module | None, views: Sequence[Tensor]) -> list[Tensor]:
    """``each_view`` of view 1 by ``network_a`` and of view 2 by ``network_b``; without one all views by the first."""
    if network_b is None:
        return each_view(network_a, views)
    return [*each_view(network_a, views[:1]), *each_view(network_b, views[1:], first=1)]


def expect_two(views: Sequence[Tensor], method: str) -> None:
    """``UserError`` for another number of views than two."""
    if len(views) != 2:
        raise UserError(f"{method} takes 2 views, not {len(views)}: choose a --recipe of two, without --num-views.")


@contextmanager
def counted(joint: JointViews, count: int) -> Iterator[Any]:
    """The norms' batch holds so many views inside; also around what computes a forward pass again."""
    before = joint.count
    joint.count = count
    try:
        yield
    finally:
        joint.count = before
