"""VICReg of more than two views: its definition, every step, several processes, resumed runs, and what it refuses."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import BRANCHED_CONFIGS, batch_of, built, encoder
from runs import log, require_same_when_resumed, tiny, train
from stepping import RATES, Small, assert_alike, graphed, lars, plain, vicreg
from torch import Tensor
from two_ranks import trained_by_two
from waits import Waits

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Batch
from fastvicreg.errors import UserError
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg
from fastvicreg.train.batch_norm import own_group, replace_norms
from fastvicreg.train.memory import predict
from fastvicreg.train.steps.cached.step import CachedStep
from fastvicreg.train.steps.compiled.step import CompiledStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater

WEIGHTS: dict[str, Any] = {"invariance": 3.0, "variance": 5.0, "covariance": 7.0}
COUNTS = [2, 3, 4]


def several(count: int, samples: int = 6, dtype: torch.dtype = torch.float64) -> Batch:
    """``count`` views of noise."""
    base = batch_of(samples, dtype)
    views = tuple((1 + place // 2) * base.views[place % 2] + 0.1 * place for place in range(count))
    return replace(base, views=views)


def method_of(config: VICRegConfig, impl: str = "gram") -> VICReg:
    torch.manual_seed(0)
    return VICReg(encoder(), config, impl=impl).double()


def defined(method: VICReg, views: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss by its definition, one view and one pair at a time, in plain torch."""
    z = [method.expander(method.encoder(view)) for view in views]
    hinges, covariances = [], []
    for z_ND in z:
        covariance_DD = torch.cov(z_ND.T)
        hinges.append(torch.relu(1 - (covariance_DD.diagonal() + 1e-4).sqrt()).mean())
        covariances.append((covariance_DD.square().sum() - covariance_DD.diagonal().square().sum()) / z_ND.shape[1])
    p = z if method.predictor is None else [method.predictor(z_ND) for z_ND in z]
    pairs = itertools.permutations(range(len(z)), 2)
    parts = {
        "invariance": torch.stack([(p[one] - z[other]).square().mean() for one, other in pairs]).mean(),
        "variance": torch.stack(hinges).mean(),  # halved for each of two views, as the official code
        "covariance": 2 * torch.stack(covariances).mean(),
        "embedding_std": torch.stack([z_ND.std(0).mean() for z_ND in z]).mean(),
    }
    return sum((WEIGHTS[name] * parts[name] for name in WEIGHTS), torch.zeros(())), parts


@pytest.mark.parametrize("impl", ["reference", "gram"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_terms_and_gradients_are_the_definition_s(count: int, predictor: bool, impl: str) -> None:
    method = method_of(VICRegConfig(expander=(16, 12), predictor=predictor, **WEIGHTS), impl)
    twin = copy.deepcopy(method)
    views = several(count).views
    terms = method.loss(method.embed(views), method.target(views))
    total, parts = defined(twin, views)
    torch.testing.assert_close(terms.total, total, rtol=1e-9, atol=1e-9)
    for name, part in parts.items():
        wanted = part.detach().to(terms.parts[name].dtype)
        accurate = 1e-5 if name == "embedding_std" else 1e-9  # taken in fp32
        torch.testing.assert_close(terms.parts[name], wanted, rtol=accurate, atol=1e-9)
    found = torch.autograd.grad(terms.total, list(method.parameters()))
    for own, other in zip(found, torch.autograd.grad(total, list(twin.parameters())), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_views_of_one_size_are_joined_and_the_sides_are_the_first_two() -> None:
    method = method_of(VICRegConfig(expander=(16, 12)))
    joint = copy.deepcopy(method)
    replace_norms(joint, joint=True)
    views = several(4).views
    one, other = method.embed(views), joint.embed(views)
    for own, joined in zip(one.views_BD, other.views_BD, strict=True):
        torch.testing.assert_close(own, joined, rtol=1e-9, atol=1e-9)
    method.loss(one, None)
    assert list(method.sides) == ["a", "b"]
    for side, z_BD in zip(method.sides.values(), one.views_BD[:2], strict=True):
        assert torch.equal(side, z_BD)


def stepped(step: EagerStep, count: int = 5, dtype: torch.dtype = torch.float64) -> list[dict[str, float]]:
    rows = []
    for number in range(count):
        batch = several(4, 8, dtype)
        batch = replace(batch, views=tuple(view + 0.1 * number for view in batch.views))
        terms = step(batch, RATES[number % len(RATES)])
        rows.append({"total": float(terms.total), **{name: float(part) for name, part in terms.parts.items()}})
    return rows


def assert_same(found: list[dict[str, float]], wanted: list[dict[str, float]], rel: float) -> None:
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, rel=rel)
    assert wanted[0]["total"] != wanted[-1]["total"]


def test_a_cached_step_of_samples_by_themselves_is_the_eager_one() -> None:
    eager, cached = plain(), plain()
    wanted = stepped(EagerStep(eager, Updater(eager, lars(eager))))
    assert_same(stepped(CachedStep(cached, Updater(cached, lars(cached)), micro_batches=2)), wanted, 1e-6)
    assert_alike(cached, eager, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_replayed_step_is_the_eager_one() -> None:
    eager, replayed = vicreg().double(), vicreg().double()
    wanted = stepped(EagerStep(eager, Updater(eager, lars(eager))), 6)
    assert_same(stepped(graphed(replayed), 6), wanted, 1e-6)
    assert_alike(replayed, eager, rtol=1e-6, atol=1e-6)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("impl", ["reference", "gram"])
def test_compiled_graphs_are_whole_and_give_the_eager_values(impl: str) -> None:
    def small() -> VICReg:
        torch.manual_seed(0)
        return VICReg(Small(), VICRegConfig(expander=(32, 24)), impl=impl).double()  # pyright: ignore[reportArgumentType]

    eager, compiled = small(), small()
    wanted = stepped(EagerStep(eager, Updater(eager, lars(eager))), 3)
    step = CompiledStep(compiled, Updater(compiled, lars(compiled)), backend="aot_eager")
    assert_same(stepped(step, 3), wanted, 1e-6)
    assert_alike(compiled, eager, rtol=1e-6, atol=1e-6)


def test_no_step_waits_for_the_device() -> None:
    method = plain()
    step = EagerStep(method, Updater(method, lars(method, capturable=True)))
    step(several(4, 8), RATES[0])
    with Waits() as waits:
        step(several(4, 8), RATES[0])
    assert not waits.found


def trained(rank: int, size: int) -> dict[str, Tensor]:
    """State after three steps on this process's rows of a batch of 16."""
    method = method_of(VICRegConfig(expander=(16, 12)))
    if size > 1:
        replace_norms(method, ranks=size, group=own_group())
    step = EagerStep(
        method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0, momentum=0.9)), world_size=size
    )
    batch = several(4, 16)
    own = slice(rank * 16 // size, (rank + 1) * 16 // size)
    share = replace(batch, views=tuple(view[own] for view in batch.views))
    terms = [step(share, {"lr": 0.05}) for _ in range(3)]
    found = {name: terms[-1].parts[name] for name in ("invariance", "variance", "covariance")}
    return found | {key: value.detach().clone() for key, value in method.state_dict().items()}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    whole = trained(0, 1)
    for found in trained_by_two(trained, tmp_path):
        assert found.keys() == whole.keys()
        for key, value in whole.items():
            assert torch.allclose(found[key], value, rtol=1e-6, atol=1e-9), key


def with_views(data: Path, count: int, **run: Any) -> TrainConfig:
    config = tiny(data, **({"eval_every": 0} | run))
    return replace(config, data=replace(config.data, num_views=count))


@pytest.mark.slow
def test_a_run_of_four_views_resumes_to_the_bit(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    four = require_same_when_resumed(with_views(uninterrupted[0], 4), tmp_path)
    rows = log(four)
    assert len(rows) == 9
    assert all(row["total"] > 0 for row in rows)
    with pytest.raises(UserError, match="num-views"):
        train(with_views(uninterrupted[0], 3), four, resume=True)


def test_two_views_asked_for_are_the_run_of_the_recipe_s_own(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    train(with_views(data, 2, eval_every=1), tmp_path / "run")
    assert log(tmp_path / "run") == log(whole)


def test_the_memory_of_a_step_is_that_of_all_views(uninterrupted: tuple[Path, Path]) -> None:
    two, four = (predict(with_views(uninterrupted[0], count), 64, precision="off") for count in (0, 4))
    assert four.views == 2 * two.views
    assert four.kept > 1.8 * two.kept
    assert four.fixed == two.fixed


REFUSED = [
    (("--num-views", "1"), "--num-views 1 is too small: give 2 or more."),
    (("--num-views", "65"), "--num-views 65: give 2 to 64, or 0 for the recipe's own."),
    (("--num-views", "4", "--recipe", "multicrop"), "--num-views 4: the recipe multicrop has large and small views"),
    (("--num-views", "4", "--method", "byol"), "--num-views 4: --method byol takes two views: give --num-views 2."),
    (("--num-views", "4", "--method", "barlow_twins"), "--method barlow_twins takes two views"),
    (("--recipe", "supervised", "--method", "wmse"), "--recipe supervised cuts 1 view, and --method wmse takes two"),
    (("--num-views", "4", "--branch-b", "resnet18"), "--num-views 4: --branch-b resnet18 gives each of two views"),
]


@pytest.mark.parametrize(("arguments", "line"), REFUSED)
def test_what_views_cannot_be_is_one_line(
    arguments: tuple[str, ...], line: str, make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--batch-size", "8", "--image-size", "32", "--arch", "resnet18", "--width", "16", "--device", "cpu")
    data = ("--data", str(make_folder(train=10, val=0)), "--out", str(tmp_path / "run"), "--epochs", "1")
    assert main(["train", *data, *small, *arguments]) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_branches_take_two_views() -> None:
    method = built(BRANCHED_CONFIGS["vicreg branched"])
    with pytest.raises(UserError, match="VICReg with --branch-b takes 2 views, not 4"):
        method.embed(several(4, 8, torch.float32).views)


def test_a_pair_has_two_views(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("--pair", "image", "text", "--branch-b", "gru", "--data", str(tmp_path), "--num-views", "4")
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert "--num-views 4: --pair image text has two views" in capsys.readouterr().err.splitlines()[-1]
