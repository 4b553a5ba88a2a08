"""Every way to run a step gives the eager step's weights, terms and skips, and never waits for the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import TracedGraphs
from runs import tiny, train
from stepping import (
    METHODS,
    RATES,
    TOLERANCE,
    Small,
    any_method,
    assert_alike,
    batches,
    byol,
    double,
    graphed,
    held,
    lars,
    plain,
    run,
    totals,
    vicreg,
)
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch.utils._python_dispatch import _disable_current_modes
from waits import READS, Waits

from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg
from fastvicreg.train.steps import STEPS
from fastvicreg.train.steps.cached.config import CachedConfig
from fastvicreg.train.steps.cached.step import CachedStep
from fastvicreg.train.steps.compiled.step import CompiledStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.steps.graphed.config import GraphedConfig
from fastvicreg.train.steps.graphed.step import EAGER_STEPS, GraphedStep
from fastvicreg.train.updater import Updater


@pytest.mark.parametrize("name", ["moco", "swav", "wmse", "vicregl"])
def test_methods_with_queues_prototypes_draws_or_places_are_captured(name: str) -> None:
    eager, replayed = any_method(name), any_method(name)
    wanted = totals(eager, EagerStep(eager, Updater(eager, lars(eager))))
    assert totals(replayed, graphed(replayed)) == pytest.approx(wanted, rel=TOLERANCE)


@pytest.mark.parametrize("name", METHODS)
def test_a_graph_s_replays_are_the_eager_step_with_every_schedule_s_new_value(name: str) -> None:
    eager, replayed = METHODS[name]().double(), METHODS[name]().double()
    wanted = run(EagerStep(eager, Updater(eager, lars(eager))), dtype=torch.float64)
    found = run(graphed(replayed), dtype=torch.float64)
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, rel=TOLERANCE)
    assert len(wanted) > EAGER_STEPS + 1  # else no replay was compared
    assert_alike(replayed, eager, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_number_from_the_host_would_stay_what_it_was_in_a_graph() -> None:
    """Negative control of the one before: the recorder bakes in what is no tensor."""
    method = byol().double()

    class Baked(GraphedStep):
        def _set_scalars(self, scalars: Mapping[str, float], device: torch.device) -> None:
            self._scalars = self._scalars or {name: float(value) for name, value in scalars.items()}  # type: ignore[assignment]

    optimizer = lars(method, capturable=True)
    step = Baked(method, Updater(method, optimizer), graphs=TracedGraphs(lambda: held(method, optimizer)))
    run(step, dtype=torch.float64)
    other = byol().double()
    run(EagerStep(other, Updater(other, lars(other))), dtype=torch.float64)
    target = "target_encoder.network.conv.weight"
    assert not torch.allclose(method.state_dict()[target], other.state_dict()[target], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_replayed_step_that_is_not_finite_changes_nothing(name: str) -> None:
    method = METHODS[name]()
    step = graphed(method)
    run(step, EAGER_STEPS + 2)
    before = copy.deepcopy(method.state_dict())
    batch = batches(1)[0]
    spoilt = replace(batch, views=tuple(view * torch.nan for view in batch.views))
    assert step(spoilt, RATES[0]).total.isnan()
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert step(batch, RATES[0]).total.isfinite()


def test_views_of_another_size_are_a_graph_of_their_own() -> None:
    method, other = vicreg().double(), vicreg().double()
    step, eager = graphed(method), EagerStep(other, Updater(other, lars(other)))
    small = batches(1, samples=4)[0]
    for batch in map(double, (*batches(5), *[small] * 5, batches(1)[0])):
        found, wanted = float(step(batch, RATES[0]).total), float(eager(batch, RATES[0]).total)
        assert found == pytest.approx(wanted, rel=TOLERANCE)


class Reading(VICReg):
    """Asks the device for the loss on the way."""

    def loss(self, embeddings: Any, targets: None) -> Any:
        terms = super().loss(embeddings, targets)
        if float(terms.total.detach()) > 1e9:
            raise AssertionError
        return terms


def reading() -> Reading:
    torch.manual_seed(0)
    return Reading(Small(), VICRegConfig(expander=(32, 24)), impl="reference")


def test_a_method_that_reads_the_device_cannot_be_captured() -> None:
    method = reading()
    with pytest.raises(UserError, match="--step graphed: a step of Reading cannot be captured"):
        run(graphed(method))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [name for name in STEPS if name != "compiled"])
def test_no_step_waits_for_the_device(name: str, kind: str) -> None:
    method = METHODS[name]()
    updater = Updater(method, lars(method, capturable=True))
    steps: dict[str, Callable[[], EagerStep]] = {
        "eager": lambda: EagerStep(method, updater),
        "graphed": lambda: graphed(method),
        "cached": lambda: CachedStep(method, updater, micro_batches=2),
    }
    step = steps[kind]()
    for batch in batches(EAGER_STEPS + 1):
        step(batch, RATES[0])
    with Waits() as waits:
        step(batches(1)[0], RATES[0])
    assert not waits.found
    with Waits() as waits:  # negative control: an optimizer that reads the flag on the host
        EagerStep(method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0)))(batches(1)[0], RATES[0])
    assert waits.found["_local_scalar_dense"] == 1


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    """Else the limit on compilations of one function, of all tests together, is reached."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", METHODS)
def test_compiled_graphs_are_whole_and_give_the_eager_values(name: str) -> None:
    eager, compiled = METHODS[name](), METHODS[name]()
    wanted = run(EagerStep(eager, Updater(eager, lars(eager))), 3)
    found = run(CompiledStep(compiled, Updater(compiled, lars(compiled)), backend="aot_eager"), 3)
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert_alike(compiled, eager, rtol=1e-4, atol=1e-5)


class Unwatched(CompiledStep):
    """A compiler takes nothing under a dispatch mode: its graphs run without it, and the rest of the step with it."""

    def _functions(self) -> Any:
        def unwatched(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                with _disable_current_modes():
                    return function(*arguments)

            return call

        return tuple(map(unwatched, super()._functions()))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_step_waits_neither_in_its_graphs_nor_between_them(name: str) -> None:
    """A whole graph holds no read, since its tracer has no values: the next test."""
    compiled: list[str] = []

    def noted(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets = [node.target for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
        compiled.extend(target.overloadpacket.__name__ for target in targets)
        return make_boxed_func(graph.forward)

    method = METHODS[name]()
    backend: Any = aot_autograd(fw_compiler=noted, bw_compiler=noted)
    step = Unwatched(method, Updater(method, lars(method, capturable=True)), backend=backend)
    for batch in batches(2):
        step(batch, RATES[0])
    with Waits() as waits:
        step(batches(1)[0], RATES[0])
    assert not waits.found
    assert {"convolution", "convolution_backward"} <= set(compiled), "the step's work is in the graphs"
    assert not set(READS) & set(compiled)


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_method_that_reads_the_device_cannot_be_compiled() -> None:
    method = reading()
    with pytest.raises(UserError, match="--step compiled: Reading cannot be compiled here"):
        run(CompiledStep(method, Updater(method, lars(method)), backend="aot_eager"), 1)


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_method_that_cannot_be_compiled_whole_is_one_line() -> None:
    class Printing(VICReg):
        def loss(self, embeddings: Any, targets: None) -> Any:
            torch._dynamo.graph_break()
            return super().loss(embeddings, targets)

    torch.manual_seed(0)
    method = Printing(Small(), VICRegConfig(expander=(32, 24)), impl="reference")
    with pytest.raises(UserError, match="--step compiled: Printing cannot be compiled here") as seen:
        run(CompiledStep(method, Updater(method, lars(method)), backend="aot_eager"), 1)
    assert "\n" not in str(seen.value)
    assert str(seen.value).endswith("give --step eager.")


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_run_may_have_more_sizes_of_views_than_torch_compiles_one_function_for() -> None:
    method = vicreg()
    step = CompiledStep(method, Updater(method, lars(method)), backend="eager")
    batch = batches(1)[0]
    for side in range(20, 30):
        views = tuple(torch.randn(8, 3, side, side) for _ in batch.views)
        assert step(replace(batch, views=views), RATES[0]).total.isfinite()


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_the_compiler_s_code_gives_the_eager_values() -> None:
    eager, compiled = plain(), plain()
    wanted = run(EagerStep(eager, Updater(eager, lars(eager))), 2, dtype=torch.float64)
    found = run(CompiledStep(compiled, Updater(compiled, lars(compiled))), 2, dtype=torch.float64)
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--step", "cache"), "unknown step 'cache'; did you mean 'cached'? Choose from: eager, compiled"),
        (("--micro-batches", "2"), "--micro-batches is a setting of cached, not of eager: give --step cached"),
        (("--step", "cached", "--micro-batches", "0"), "--micro-batches 0 is too small"),
        (("--step", "cached", "--batch-size", "30"), "--batch-size 30 cannot be cut into --micro-batches 4"),
        (("--step", "cached", "--batch-size", "4"), "--micro-batches 4 leaves 1 image"),
        (("--step", "graphed", "--device", "cpu"), "--step graphed needs CUDA, not --device cpu"),
    ],
)
def test_what_a_step_cannot_have_is_one_line(
    arguments: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--preset", "demo", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_may_change_how_a_step_is_run_but_not_what_it_computes(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tiny(uninterrupted[0])
    train(replace(config, run=replace(config.run, steps=2)), tmp_path / "run")
    with pytest.raises(UserError, match="was started with --step eager, not cached"):
        train(replace(config, step=CachedConfig(2)), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="needs CUDA"):  # not refused as another run
        train(replace(config, step=GraphedConfig()), tmp_path / "run", resume=True)
