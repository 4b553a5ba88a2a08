"""Which samples a run's residual branches leave out: pure functions of seed, epoch, sample, view and branch.

Shape suffixes: B batch, V views, K residual branches that drop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import METHOD_CONFIGS, batch_of
from recorded import TracedGraphs
from runs import require_same_when_resumed, tiny, with_dino_s_options
from stepping import TOLERANCE, assert_alike, double, held, lars
from torch import Tensor, nn

from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Batch, BuildContext, Cursor
from fastvicreg.encoders.drop_path import Drops
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.resnet.network import resnet
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.encoders.vit.network import VisionTransformer
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.profiles.bench.step import Case, build_case
from fastvicreg.profiles.bench.swap import loops_of
from fastvicreg.profiles.parts import opened
from fastvicreg.train.assemble import as_module, build_step
from fastvicreg.train.batch_norm import replace_norms
from fastvicreg.train.drop_path import drawn, drops_of, install
from fastvicreg.train.memory import predict
from fastvicreg.train.steps.cached.step import CachedStep
from fastvicreg.train.steps.compiled.step import CompiledStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.steps.graphed.step import EAGER_STEPS, GraphedStep
from fastvicreg.train.updater import Updater

RATES = (0.1, 0.25, 0.5)


def batch(index_B: Tensor, *, epoch: int = 0, place: int = 0, views: int = 2) -> Batch:
    """Of samples by their numbers; the views hold nothing."""
    return Batch((torch.empty(len(index_B), 0),) * views, index_B, index_B, Cursor(epoch, place))


def draws(index_B: Tensor, *, seed: int = 5, **where: int) -> Tensor:
    return drawn(Drops(seed, RATES), batch(index_B, **where))


def test_a_sample_s_draws_depend_on_nothing_but_itself_and_the_epoch() -> None:
    index_B = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:64]
    whole_VKB = draws(index_B, epoch=3)
    assert whole_VKB.shape == (2, 3, 64)
    assert torch.equal(draws(index_B, epoch=3, place=9), whole_VKB), "not on the batch's place"
    for part in (slice(0, 32), slice(32, 64), slice(1, 64, 2)):  # what two processes hold, however it is shared
        assert torch.equal(draws(index_B[part], epoch=3), whole_VKB[:, :, part])
    assert torch.equal(draws(index_B, epoch=3, views=1), whole_VKB[:1])
    assert not torch.equal(draws(index_B, epoch=4), whole_VKB)
    assert not torch.equal(draws(index_B, epoch=3, seed=6), whole_VKB)
    assert draws(index_B, epoch=3, seed=2**63 - 1).isfinite().all()


def test_each_branch_leaves_out_its_share_and_keeps_the_expectation() -> None:
    samples, views = 20_000, 3
    factor_VKB = draws(torch.arange(samples), views=views)
    for place, rate in enumerate(RATES):
        own_VB = factor_VKB[:, place]
        assert torch.equal(own_VB.unique(), torch.tensor([0.0, 1 / (1 - rate)], dtype=torch.float64))
        deviation = (rate * (1 - rate) / own_VB.numel()) ** 0.5
        assert float((own_VB == 0).double().mean()) == pytest.approx(rate, abs=4 * deviation)
        assert float(own_VB.mean()) == pytest.approx(1, abs=4 * deviation / (1 - rate))


def test_views_branches_epochs_and_neighbours_are_drawn_apart() -> None:
    samples = 20_000
    left_out = (draws(torch.arange(samples)) == 0).double().flatten(0, 1)  # views x branches
    beside = (draws(torch.arange(samples), epoch=1) == 0).double().flatten(0, 1)
    every = torch.cat((left_out, beside, left_out.roll(1, 1)))
    correlation = torch.corrcoef(every) - torch.eye(len(every))
    assert float(correlation.abs().max()) < 4.5 * samples**-0.5


def method_on(network: Any, *, config: VICRegConfig | None = None) -> Any:
    torch.manual_seed(0)
    method = as_module((config or VICRegConfig(expander=(32, 24))).build(BuildContext(lambda *_: network())))
    for norm in method.modules():  # a fresh residual block is its shortcut, whose branch is 0 in any case
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)
    return method


def vit() -> Any:
    """A method in which a sample's embedding is its own function, in fp64."""
    config = VICRegConfig(expander=(16,))
    method = method_on(lambda: VisionTransformer(32, 2, 3, 8, 2, drop_path=0.5), config=config).double()
    install(method, 0)
    return method


def at(number: int) -> Batch:
    """The batch of a step: other images each time, from the third step on of another epoch."""
    base = batch_of(8, torch.float64)
    views = tuple(view + 0.1 * number for view in base.views)
    return replace(base, views=views, index_B=base.index_B + 8 * number, cursor=Cursor(number // 2, number % 2))


def totals(step: EagerStep, count: int = EAGER_STEPS + 2) -> list[float]:
    return [float(step(at(number), {"lr": 0.1}).total) for number in range(count)]


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def wanted() -> tuple[list[float], Any]:
    """Totals of the eager step, and the method that it trained."""
    method = vit()
    return totals(EagerStep(method, Updater(method, lars(method)))), method


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_cached_step_leaves_out_the_same_in_both_passes(wanted: Any, micro_batches: int) -> None:
    method = vit()
    found = totals(CachedStep(method, Updater(method, lars(method)), micro_batches=micro_batches))
    assert found == pytest.approx(wanted[0], rel=1e-9)
    assert_alike(method, wanted[1], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_replayed_step_reads_each_step_s_own_draws(wanted: Any) -> None:
    method = vit()
    optimizer = lars(method, capturable=True)
    graphs = TracedGraphs(lambda: held(method, optimizer))
    found = totals(GraphedStep(method, Updater(method, optimizer), graphs=graphs))
    assert found == pytest.approx(wanted[0], rel=TOLERANCE)
    assert_alike(method, wanted[1], rtol=1e-5, atol=1e-7)  # its learning rate is an fp32 scalar


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_step_reads_each_step_s_own_draws_and_compiles_once(wanted: Any) -> None:
    method = vit()
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = totals(CompiledStep(method, Updater(method, lars(method)), backend="aot_eager"))
    assert found == pytest.approx(wanted[0], rel=1e-9)
    assert_alike(method, wanted[1], rtol=1e-8, atol=1e-10)


def test_draws_change_what_is_learned(wanted: Any) -> None:
    """Negative control of the comparisons above."""
    method = vit()
    method.drops.rates = (0.0,) * len(method.drops.rates)
    first = totals(EagerStep(method, Updater(method, lars(method))), 1)[0]
    assert first != pytest.approx(wanted[0][0], rel=1e-3)


def test_an_epoch_s_draws_are_its_own_for_the_same_images() -> None:
    method = vit()
    step = EagerStep(method, Updater(method, lars(method)))
    same = double(batch_of(8))
    found = [float(step(replace(same, cursor=Cursor(epoch, 0)), {"lr": 0.0}).total) for epoch in (0, 1, 0)]
    assert found[0] == found[2]
    assert found[0] != found[1]
    assert method.drops.factor_VKB is None, "outside of a step nothing is left out"


@pytest.mark.slow
@pytest.mark.parametrize("joint", [False, True])
def test_outputs_of_norms_computed_again_change_nothing(joint: bool) -> None:
    found = []
    for recompute in (False, True):
        method = method_on(lambda: resnet("resnet18", width=16, stem="3x3s2", drop_path=0.5)).double()
        replace_norms(method, joint=joint, recompute=recompute)
        install(method, 0)
        found.append((totals(EagerStep(method, Updater(method, lars(method))), 2), method))
    (rows, method), (again, other) = found
    assert again == pytest.approx(rows, rel=1e-10)
    assert_alike(other, method, rtol=1e-8, atol=1e-10)


def test_a_resumed_run_is_the_same_with_all_three(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    config = replace(with_dino_s_options(tiny(uninterrupted[0])), method=METHOD_CONFIGS["dino"])
    require_same_when_resumed(config, tmp_path)


def test_benchmarks_run_the_step_that_the_settings_describe(uninterrupted: tuple[Path, Path]) -> None:
    config = replace(with_dino_s_options(tiny(uninterrupted[0])), method=METHOD_CONFIGS["byol"])
    subject = build_case(config, Case(), "cpu", 8)
    assert drops_of(subject.step.method) is not None
    assert subject.step.updater.clipping is not None
    with opened(config) as run, ExitStack() as ending:
        for name, loop in loops_of(config, run, ending).items():
            turn = loop(Cursor(0, 0))
            next(turn)
            turn.close()
            assert drops_of(run.method).factor_VKB is None, name  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "encoder", [ResNetConfig("resnet18", width=16, stem="3x3s2"), ViTConfig("vit_tiny", patch=8, grid=4, depth=3)]
)
def test_memory_is_foretold_with_what_dropping_keeps(encoder: Any) -> None:
    config = TrainConfig(encoder=replace(encoder, drop_path=0.3), method=VICRegConfig(expander=(64, 64)))
    config = replace(config, data=replace(config.data, image_size=32))
    module: Any = as_module(build_step(config, device="cpu", precision="off").method)
    views = tuple(torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last) for _ in range(2))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *views)}
    sizes: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    factor_VKB = torch.ones(2, len(module.drops.rates), 8, dtype=torch.float64)
    with module.drops.during(factor_VKB), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.embed(views)
    real = sum(storage.nbytes() for storage in sizes.values())
    assert predict(config, 8, precision="off").kept == pytest.approx(real, rel=0.05)
