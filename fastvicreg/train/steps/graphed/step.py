"""The whole step as one CUDA graph: its launches are recorded once and replayed by a single call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvicreg.contracts import Batch, Method, Terms
from fastvicreg.errors import UserError
from fastvicreg.train.drop_path import drawn
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater

EAGER_STEPS = 3
"""Run before a recording, so that libraries have chosen their kernels and made their workspaces ..."""
EAGER_STEPS_OF_MANY = 11
"""... and more where gradients are averaged, which DistributedDataParallel arranges anew in its first ten."""


class Graph(Protocol):
    """Records what a function asks of the device, and does it again."""

    def record(self, function: Callable[[], Terms]) -> Terms:
        """``function``'s result, whose values only ``replay`` makes. Nothing is computed."""
        ...

    def replay(self) -> None: ...
    def release(self) -> None:
        """Give back what was recorded."""
        ...


class Graphs(Protocol):
    """Makes graphs that all record from one stream."""

    def new(self) -> Graph: ...
    def aside(self) -> AbstractContextManager[None]:
        """Inside, work goes to that stream, behind what was asked for before and before what comes after."""
        ...


class CudaGraphs:
    """CUDA graphs, and the stream that they are recorded from."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def new(self) -> Graph:
        return CudaGraph(self._stream)

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)


class CudaGraph:
    """A CUDA graph that is recorded from ``stream``."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream = stream

    def record(self, function: Callable[[], Terms]) -> Terms:
        # The loader's threads pin memory meanwhile, which a "global" capture would take for its own.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        self._graph.replay()

    def release(self) -> None:
        with suppress(RuntimeError):  # of a device that has failed: what ended the run is told already
            self._graph.reset()


@dataclass
class _Recording:
    """A graph, and the memory that it reads and writes at every replay."""

    shapes: tuple[tuple[torch.Size, torch.dtype], ...]
    """Of the views, with the places where there are any."""
    graph: Graph
    views: tuple[Tensor, ...]
    factor_VKB: Tensor | None
    """Of stochastic depth, where there is any."""
    terms: Terms | None = None
    eager_steps: int = 0


class GraphedStep(EagerStep):
    """Views are copied into the graph's own memory, the rates into scalars on the device; then the graph is replayed.

    There is one graph, of the views' present shape: a run's sizes change from epoch to epoch, and a graph holds all
    that its step ever computes. The first steps of a shape run eagerly. What a call returns is overwritten by the next
    call. The optimizer must read its learning rate and ``found_inf`` on the device.
    """

    def __init__(self, method: Method, updater: Updater, *, graphs: Graphs | None = None, **common: Any) -> None:
        """``common`` are ``EagerStep``'s; ``graphs`` are CUDA's unless others are given."""
        self._graphs: Graphs = graphs or CudaGraphs()
        super().__init__(method, updater, **common)
        self._recording: _Recording | None = None
        self._scalars: dict[str, Tensor] = {}

    def _settings(self) -> dict[str, Any]:
        return {"graphs": self._graphs}

    def _making(self) -> AbstractContextManager[None]:
        """DistributedDataParallel keeps each parameter's node of autograd, and a node runs on the stream of its making.

        Made on another than is recorded, it would draw that one into the recording, which CUDA refuses.
        """
        return self._graphs.aside()

    def close(self) -> None:
        """Give the graph back: NCCL waits for one that holds its messages before it lets processes part."""
        if self._recording is not None:
            self._recording.graph.release()
            self._recording = None

    def __call__(self, batch: Batch, scalars: Mapping[str, float]) -> Terms:
        """``UserError`` where the method asks the device for a value, which a graph cannot do."""
        self.updater.set_rates(scalars)
        self._set_scalars(scalars, batch.views[0].device)
        factor_VKB = drawn(self._drops, batch) if self._drops else None
        shapes = tuple((view.shape, view.dtype) for view in batch.inputs)
        if self._recording is None or self._recording.shapes != shapes:
            self.close()
            static = tuple(view.clone(memory_format=torch.preserve_format) for view in batch.inputs)
            own_VKB = None if factor_VKB is None else factor_VKB.clone()
            self._recording = _Recording(shapes, self._graphs.new(), static, own_VKB)
        recording = self._recording
        for own, view in zip(recording.views, batch.inputs, strict=True):
            own.copy_(view, non_blocking=True)
        if recording.factor_VKB is not None and factor_VKB is not None:
            recording.factor_VKB.copy_(factor_VKB, non_blocking=True)
        enough = EAGER_STEPS if self._world_size == 1 else EAGER_STEPS_OF_MANY
        if recording.terms is None:
            if recording.eager_steps < enough:
                recording.eager_steps += 1
                with self._graphs.aside():
                    return self._once(recording)
            recording.terms = self._recorded(recording)
        recording.graph.replay()
        return recording.terms

    def _recorded(self, recording: _Recording) -> Terms:
        self.updater.begin()  # no gradient is left over that the graph would add to
        try:
            return recording.graph.record(lambda: self._once(recording))
        except RuntimeError as error:
            for each in (error, error.__context__):  # ending a capture that broke off may raise as well
                if isinstance(each, torch.OutOfMemoryError):
                    raise each from None  # told as any other step's: a smaller batch helps
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--step graphed: a step of {type(self.method).__name__} cannot be captured ({reason}): "
                "give --step eager or compiled."
            ) from error

    def _once(self, recording: _Recording) -> Terms:
        factor_VKB = recording.factor_VKB
        with nullcontext() if self._drops is None or factor_VKB is None else self._drops.during(factor_VKB):
            return self._run(recording.views, self._scalars)

    def _set_scalars(self, scalars: Mapping[str, float], device: torch.device) -> None:
        """The schedules' values to where the graph reads them; in fp64, as 1 - .9999 has to be exact enough."""
        for name, value in scalars.items():
            if name not in self._scalars:
                self._scalars[name] = torch.zeros((), dtype=torch.float64, device=device)
            self._scalars[name].fill_(value)
