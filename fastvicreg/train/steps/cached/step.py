"""Gradient caching (Gao et al., arXiv 2101.06983): a batch-wide loss with one micro-batch's activations in memory.

The embeddings of every micro-batch but the first are computed without gradient, those of the first with it; the loss of
them all gives the gradient at each embedding, which the first takes on to the weights at once, and the others after a
second forward pass. So one micro-batch's activations are kept at a time, and the second pass of one of them is saved.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils._pytree import tree_leaves, tree_map

from fastvicreg import stages
from fastvicreg.contracts import Method, Terms
from fastvicreg.errors import UserError
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import RunningStatistics, Updater


class CachedStep(EagerStep):
    """Equal to one pass over the batch where every sample's embedding is its own function.

    A batch norm makes it a function of the micro-batch: then equal to one pass with statistics by micro-batch. Running
    statistics move once a micro-batch, in its last pass, from the first micro-batch to the last.
    """

    def __init__(self, method: Method, updater: Updater, *, micro_batches: int, **common: Any) -> None:
        """``micro_batches`` is how many parts this process's batch is cut into; ``common`` are ``EagerStep``'s."""
        self._micro_batches = micro_batches
        super().__init__(method, updater, **common)

    def _settings(self) -> dict[str, Any]:
        return {"micro_batches": self._micro_batches}

    def _averages_in_backward(self) -> bool:
        return False

    def _gradients(self, views: tuple[Tensor, ...]) -> Terms:
        count = self._micro_batches
        parts = list(zip(*(view.chunk(count) for view in views), strict=True))
        first, embeddings, targets = self._embedded(parts)
        with self.autocast():
            terms = self._terms(embeddings, targets)
        self.updater.backward(terms.total)
        # A method may leave a place empty: None is a leaf too.
        found = [None if leaf is None else leaf.grad for leaf in tree_leaves(embeddings)]
        cached = [None if grad is None else grad.chunk(count) for grad in found]
        for number, part in enumerate(parts):
            leaves = tree_leaves(self._embed_part(number, part) if number else first)
            reached = [
                (leaf, grads[number])
                for leaf, grads in zip(leaves, cached, strict=True)
                if grads is not None and leaf.requires_grad
            ]
            with record_function(stages.BACKWARD):
                torch.autograd.backward([leaf for leaf, _ in reached], [grad for _, grad in reached])
        if self._world_size > 1:
            with record_function(stages.COMM):
                self._average()
        return terms

    def _part(self, number: int) -> AbstractContextManager[None]:
        """Stochastic depth leaves out the same in both passes of this micro-batch."""
        return self._drops.part(number, self._micro_batches) if self._drops else nullcontext()

    def _embed_part(self, number: int, part: tuple[Tensor, ...]) -> Any:
        # An autocast of its own: weights that one casts without gradient stay so until it ends.
        with record_function(stages.FORWARD), self.autocast(), self._part(number):
            return self.method.embed(part)

    def _embedded(self, parts: list[tuple[Tensor, ...]]) -> tuple[Any, Any, Any]:
        """The first micro-batch's embeddings in their graph; the whole batch's, which take a gradient; its targets."""
        assert isinstance(self.method, nn.Module)
        statistics = RunningStatistics(self.method)
        with torch.no_grad():
            statistics.keep()
            others = [self._embed_part(number, part) for number, part in enumerate(parts[1:], start=1)]
            statistics.restore_unless(False)  # the second pass moves them
            with record_function(stages.FORWARD), self.autocast():
                targets = self._joined([self.method.target(part) for part in parts], parts)
        first = self._embed_part(0, parts[0])
        detached = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, first)
        whole = self._joined([detached, *others], parts)
        for leaf in tree_leaves(whole):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                leaf.requires_grad_()
        return first, whole, targets

    def _joined(self, results: list[Any], parts: list[tuple[Tensor, ...]]) -> Any:
        """Along the batch. ``UserError`` for a method whose results are not one row a sample."""
        rows = len(parts[0][0])
        if any(isinstance(leaf, Tensor) and (not leaf.ndim or len(leaf) % rows) for leaf in tree_leaves(results[0])):
            name = type(self.method).__name__
            raise UserError(f"--step cached: {name} gives more than a row a sample, which is not joined: give eager.")
        return tree_map(lambda first, *rest: first if first is None else torch.cat((first, *rest)), *results)

    def _average(self) -> None:
        """Gradients over the processes, in one message a dtype."""
        groups = self.updater.optimizer.param_groups
        grads = [param.grad for group in groups for param in group["params"] if param.grad is not None]
        for dtype in {grad.dtype for grad in grads}:
            own = [grad for grad in grads if grad.dtype == dtype]
            flat = torch.cat([grad.reshape(-1) for grad in own]) / self._world_size
            flat = flat.bfloat16() if self._in_bf16 else flat
            dist.all_reduce(flat)
            pieces = flat.split([grad.numel() for grad in own])
            for grad, piece in zip(own, pieces, strict=True):
                grad.copy_(piece.view_as(grad))
