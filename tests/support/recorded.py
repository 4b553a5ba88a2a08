"""A CUDA graph's rules on a CPU: what is recorded reads fixed memory, bakes in every number, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fastvicreg.contracts import Terms


class TracedGraph:
    """Records operators by ``make_fx``; what the host reads stops it, a number from the host stays as it was."""

    def __init__(self, held: Callable[[], list[Tensor]]) -> None:
        """``held`` lists what a step may change: ``make_fx`` executes what it records, a capture does not."""
        self._held = held
        self._operators: Callable[[], list[Tensor]] = list
        self._made: list[Tensor] = []

    def record(self, function: Callable[[], Terms]) -> Terms:
        names: list[str] = []

        def values() -> list[Tensor]:
            terms = function()
            names[:] = terms.parts
            return [terms.total, *terms.parts.values()]

        before = [(tensor, tensor.detach().clone()) for tensor in self._held()]
        self._operators = make_fx(values)()
        self._made = [torch.full((), torch.nan) for _ in ("total", *names)]
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        return Terms(self._made[0], dict(zip(names, self._made[1:], strict=True)))

    def replay(self) -> None:
        with torch.no_grad():
            for own, value in zip(self._made, self._operators(), strict=True):
                own.copy_(value)

    def release(self) -> None:
        self._operators = list


class TracedGraphs:
    """``made`` are the graphs of a step, ``inside`` how many contexts of their stream are open."""

    def __init__(self, held: Callable[[], list[Tensor]]) -> None:
        self._held = held
        self.made: list[TracedGraph] = []
        self.inside = 0

    def new(self) -> TracedGraph:
        self.made.append(TracedGraph(self._held))
        return self.made[-1]

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
