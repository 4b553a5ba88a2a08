"""Where a graphed step's parts are made and what it gives back: CUDA's rules on streams, and NCCL's on graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded import TracedGraphs
from stepping import RATES, batches, held, lars, run, vicreg
from torch import nn

from fastvicreg.contracts import Terms
from fastvicreg.train import distributed
from fastvicreg.train.steps.graphed.step import EAGER_STEPS, EAGER_STEPS_OF_MANY, CudaGraphs, GraphedStep
from fastvicreg.train.updater import Updater


class Averaging(nn.Module):
    """Stands for DistributedDataParallel; notes whether it is made, and called, inside of ``graphs``' stream."""

    graphs: Any = None
    seen: list[tuple[str, int]]

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__()
        self.module = module
        self.seen.append(("made", self.graphs.inside))

    def forward(self, views: Any) -> Terms:
        self.seen.append(("called", self.graphs.inside))
        return self.module(views)


def step_of(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[GraphedStep, TracedGraphs]:
    method = vicreg()
    optimizer = lars(method, capturable=True)
    graphs = TracedGraphs(lambda: held(method, optimizer))
    monkeypatch.setattr(Averaging, "graphs", graphs)
    monkeypatch.setattr(Averaging, "seen", [], raising=False)
    monkeypatch.setattr("fastvicreg.train.steps.eager.step.DistributedDataParallel", Averaging)
    return GraphedStep(method, Updater(method, optimizer), graphs=graphs, **options), graphs


def test_gradients_are_averaged_on_the_stream_that_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nodes of autograd run on the stream on which it was made: no other may be drawn into a capture."""
    step, _ = step_of(monkeypatch, world_size=2)
    run(step, EAGER_STEPS_OF_MANY)
    assert Averaging.seen == [("made", 1), *[("called", 1)] * EAGER_STEPS_OF_MANY]


def test_all_sizes_are_recorded_from_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Stream:
        def __init__(self) -> None:
            made.append(self)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    graphs = CudaGraphs()
    assert [graphs.new()._stream for _ in range(2)] == made * 2  # type: ignore[attr-defined]
    assert len(made) == 1


class Released:
    """A graph that records by computing."""

    def __init__(self) -> None:
        self.times = 0

    def record(self, function: Callable[[], Terms]) -> Terms:
        return function()

    def replay(self) -> None:
        """What it recorded was computed."""

    def release(self) -> None:
        self.times += 1


def test_a_graph_is_given_back_once_where_another_size_comes_or_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the memory of a whole step: two at once are more than the memory check has counted."""
    step, graphs = step_of(monkeypatch)
    made: list[Released] = []

    def new() -> Released:
        made.append(Released())
        return made[-1]

    monkeypatch.setattr(graphs, "new", new)
    for samples, released in ((8, [0]), (4, [1, 0])):
        for batch in batches(EAGER_STEPS + 1, samples):
            step(batch, RATES[0])
        assert [graph.times for graph in made] == released
    for _ in range(2):
        step.close()
    assert [graph.times for graph in made] == [1, 1]


def test_a_graph_in_a_cycle_is_gone_before_the_processes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL waits for the graphs that hold its messages; a step refers to itself, so that no count tells its end."""
    order: list[str] = []

    class Held:
        def __init__(self) -> None:
            self.own = self

        def __del__(self) -> None:
            order.append("graph")

    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: order.append("group"))
    Held()
    distributed.leave()
    assert order == ["graph", "group"]


@pytest.mark.parametrize("ends_badly", [False, True])
def test_a_capture_that_memory_does_not_hold_is_no_method_that_cannot_be_captured(
    monkeypatch: pytest.MonkeyPatch, ends_badly: bool
) -> None:
    """A run says then that a smaller batch helps, as for any other step."""

    def record(function: Callable[[], Terms]) -> Terms:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            if ends_badly:
                raise RuntimeError("the capture was invalidated")

    step, graphs = step_of(monkeypatch)
    run(step, EAGER_STEPS)
    monkeypatch.setattr(graphs.made[0], "record", record)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        run(step, 1)
