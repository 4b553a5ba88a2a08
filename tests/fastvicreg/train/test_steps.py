"""Every way to run a step gives the eager step's weights, terms and skips, and never waits for the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import METHOD_CONFIGS, batch_of
from recorded import TracedGraph
from runs import log, tiny, train
from torch import Tensor, nn
from waits import Waits

from fastvicreg.cli import main
from fastvicreg.contracts import Batch, BuildContext, Horizon, Method
from fastvicreg.errors import UserError
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.byol.method import BYOL
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg
from fastvicreg.optim import LARS
from fastvicreg.train.assemble import as_module
from fastvicreg.train.steps import STEPS
from fastvicreg.train.steps.cached.config import CachedConfig
from fastvicreg.train.steps.cached.step import CachedStep
from fastvicreg.train.steps.compiled.step import CompiledStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.steps.graphed.config import GraphedConfig
from fastvicreg.train.steps.graphed.step import EAGER_STEPS, GraphedStep
from fastvicreg.train.updater import Updater

TOLERANCE = 1e-6
"""In fp64; a rate on the device is an fp32 scalar, and some of the terms are."""
RATES = [{"lr": 0.4, "momentum": 0.9}, {"lr": 0.3, "momentum": 0.95}, {"lr": 0.2, "momentum": 0.99}]


class Small(nn.Module):
    """An encoder that is traced in no time; without a batch norm a sample's features are its own function."""

    features = 16

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 5, stride=3)
        self.bn1 = nn.BatchNorm2d(16) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv(x)).relu().mean((2, 3))

    def param_groups(self) -> list[Any]:
        return []


def vicreg() -> VICReg:
    torch.manual_seed(0)
    return VICReg(Small(), VICRegConfig(expander=(32, 24)), impl="reference")  # pyright: ignore[reportArgumentType]


def byol() -> BYOL:
    torch.manual_seed(0)
    return BYOL(Small(), BYOLConfig(projector=(32, 16), predictor_hidden=(32,)))  # pyright: ignore[reportArgumentType]


METHODS: dict[str, Callable[[], VICReg | BYOL]] = {"vicreg": vicreg, "byol": byol}


def any_method(name: str) -> Any:
    torch.manual_seed(0)
    return as_module(METHOD_CONFIGS[name].build(BuildContext(Small))).double()  # pyright: ignore[reportArgumentType]


def totals(method: Any, step: EagerStep, count: int = EAGER_STEPS + 3) -> list[float]:
    """Of steps with the method's own schedules and, where it draws, the same draws."""
    schedules, found = method.schedules(Horizon(100, 10, 8)), []
    for number, batch in enumerate(batches(count)):
        torch.manual_seed(number)
        rates = {"lr": 0.1} | {name: schedule(number) for name, schedule in schedules.items()}
        found.append(float(step(double(batch), rates).total))
    return found


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_method_is_cached(name: str) -> None:
    eager, cached = any_method(name), any_method(name)
    wanted = totals(eager, EagerStep(eager, Updater(eager, lars(eager))))
    found = totals(cached, CachedStep(cached, Updater(cached, lars(cached)), micro_batches=1))
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", ["moco", "swav", "wmse"])
def test_methods_with_queues_prototypes_or_draws_are_captured(name: str) -> None:
    eager, replayed = any_method(name), any_method(name)
    wanted = totals(eager, EagerStep(eager, Updater(eager, lars(eager))))
    assert totals(replayed, graphed(replayed)) == pytest.approx(wanted, rel=TOLERANCE)


def lars(method: nn.Module, *, capturable: bool = False) -> LARS:
    rate = torch.zeros(()) if capturable else 0.0
    return LARS(method.parameters(), lr=rate, weight_decay=1e-4, eta=0.02, impl="foreach", capturable=capturable)


def batches(count: int, samples: int = 8) -> list[Batch]:
    base = batch_of(samples)
    return [replace(base, views=tuple(view + 0.1 * number for view in base.views)) for number in range(count)]


def run(step: EagerStep, count: int = 6, dtype: torch.dtype = torch.float32) -> list[dict[str, float]]:
    """The terms of each step, read at once: a graph's are overwritten by the next."""
    rows = []
    for number, batch in enumerate(batches(count)):
        views = tuple(view.to(dtype) for view in batch.views)
        terms = step(replace(batch, views=views), RATES[number % len(RATES)])
        rows.append({"total": float(terms.total), **{name: float(part) for name, part in terms.parts.items()}})
    return rows


def held(method: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*method.parameters(), *method.buffers(), *moments]


def graphed(method: VICReg | BYOL) -> GraphedStep:
    optimizer = lars(method, capturable=True)
    return GraphedStep(
        method, Updater(method, optimizer), recorder=lambda: TracedGraph(lambda: held(method, optimizer))
    )


def assert_alike(one: nn.Module, other: nn.Module, *, rtol: float, atol: float) -> None:
    for (name, value), wanted in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


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
    step = Baked(method, Updater(method, optimizer), recorder=lambda: TracedGraph(lambda: held(method, optimizer)))
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


def test_a_method_that_reads_the_device_cannot_be_captured() -> None:
    class Reading(VICReg):
        def loss(self, embeddings: Any, targets: None) -> Any:
            terms = super().loss(embeddings, targets)
            if float(terms.total.detach()) > 1e9:
                raise AssertionError
            return terms

    torch.manual_seed(0)
    method = Reading(Small(), VICRegConfig(expander=(32, 24)), impl="reference")
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


def plain() -> VICReg:
    torch.manual_seed(0)
    method = VICReg(Small(norm=False), VICRegConfig(expander=(16,)), impl="gram")
    return method.double()


def double(batch: Batch) -> Batch:
    return replace(batch, views=tuple(view.double() for view in batch.views))


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_cached_gradients_are_the_whole_batch_s_where_no_batch_norm_looks_across(micro_batches: int) -> None:
    whole, cached = plain(), plain()
    for method, step in (
        (whole, EagerStep(whole, Updater(whole, torch.optim.SGD(whole.parameters(), lr=0.0)))),
        (
            cached,
            CachedStep(
                cached, Updater(cached, torch.optim.SGD(cached.parameters(), lr=0.0)), micro_batches=micro_batches
            ),
        ),
    ):
        terms = step(double(batch_of(8)), {"lr": 0.0})
        assert terms.total.isfinite(), method
    for one, other in zip(cached.parameters(), whole.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-13)


class ByPart(VICReg):
    """In one pass, with the statistics that a cached step of two micro-batches has."""

    def embed(self, views: tuple[Tensor, ...]) -> Any:
        parts = [VICReg.embed(self, part) for part in zip(*(view.chunk(2) for view in views), strict=True)]
        one, other = parts
        return one._replace(
            za_BD=torch.cat((one.za_BD, other.za_BD)),
            zb_BD=torch.cat((one.zb_BD, other.zb_BD)),
            features_BF=torch.cat((one.features_BF, other.features_BF)),
        )


def test_cached_equals_one_pass_with_statistics_by_micro_batch() -> None:
    torch.manual_seed(0)
    whole = ByPart(Small(), VICRegConfig(expander=(32, 24)), impl="reference").double()
    cached = vicreg().double()
    for method, kind in ((whole, EagerStep), (cached, CachedStep)):
        settings: dict[str, Any] = {"micro_batches": 2} if kind is CachedStep else {}
        step = kind(method, Updater(method, lars(method)), **settings)
        for batch in batches(3):
            step(double(batch), RATES[0])
    assert_alike(cached, whole, rtol=1e-9, atol=1e-11)
    assert int(cached.state_dict()["encoder.bn1.num_batches_tracked"]) == 3 * 2 * 2  # steps, views, micro-batches


def test_cached_skips_what_is_not_finite_and_leaves_the_target() -> None:
    method = byol()
    step = CachedStep(method, Updater(method, lars(method, capturable=True)), micro_batches=2)
    run(step, 2)
    before = copy.deepcopy(method.state_dict())
    batch = batches(1)[0]
    step(replace(batch, views=tuple(view * torch.nan for view in batch.views)), RATES[0])
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key


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


def test_a_replaced_loss_keeps_the_kind_of_step() -> None:
    method: Method = vicreg()
    step = CachedStep(method, Updater(as_module(method), lars(as_module(method))), micro_batches=4)
    other = step.replaced(loss=lambda embeddings, targets: method.loss(embeddings, targets))
    assert type(other) is CachedStep
    assert run(other, 1)[0].keys() == run(step, 1)[0].keys()


@pytest.mark.usefixtures("_fresh_compiler")
def test_the_compiler_s_code_gives_the_eager_values() -> None:
    eager, compiled = plain(), plain()
    wanted = run(EagerStep(eager, Updater(eager, lars(eager))), 2, dtype=torch.float64)
    found = run(CompiledStep(compiled, Updater(compiled, lars(compiled))), 2, dtype=torch.float64)
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, rel=TOLERANCE)


def test_a_cached_run_stopped_and_resumed_is_the_same_run(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    config = replace(tiny(data), step=CachedConfig(1))
    train(replace(config, run=replace(config.run, steps=4)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    for row, other in zip(log(tmp_path / "run"), log(whole), strict=True):
        assert row == pytest.approx(other, rel=1e-4)


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
