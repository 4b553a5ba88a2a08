"""Branches that share nothing: each view has its own encoder and head, in training, checkpoints and evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import BRANCHED_CONFIGS, METHOD_CONFIGS, batch_of, built
from recorded import TracedGraphs
from runs import log, tiny, train
from stepping import Small, assert_alike, double, held, lars, totals
from torch import nn

import fastvicreg
from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import BuildContext
from fastvicreg.encoders import varied
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.methods import METHODS, config_class
from fastvicreg.methods.barlow_twins.config import BarlowTwinsConfig
from fastvicreg.methods.settings import Branched
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.train.batch_norm import replace_norms
from fastvicreg.train.steps.cached.step import CachedStep
from fastvicreg.train.steps.compiled.step import CompiledStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.steps.graphed.step import GraphedStep
from fastvicreg.train.updater import Updater

VIT = ("vit_tiny", "patch=8", "grid=2", "depth=1")


def test_view_1_goes_through_branch_a_and_view_2_through_branch_b() -> None:
    method, views = built(BRANCHED_CONFIGS["vicreg branched"]), batch_of(6).views
    za = method.expander(method.encoder(views[0]))
    zb = method.expander_b(method.encoder_b(views[1]))
    terms = method.loss(method.embed(views), None)
    torch.testing.assert_close(terms.total, vicreg_loss(za, zb, impl="reference").total)
    parameters = list(method.parameters())
    wanted = torch.autograd.grad(vicreg_loss(za, zb, impl="reference").total, parameters)
    for found, expected in zip(torch.autograd.grad(terms.total, parameters), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert [*method.encoders] == ["encoder", "encoder_b"]
    assert (method.head, method.head_b) == (method.expander, method.expander_b)


@pytest.mark.parametrize("name", BRANCHED_CONFIGS)
def test_branch_a_begins_as_without_a_second_and_shares_nothing_with_it(name: str) -> None:
    method, without = built(BRANCHED_CONFIGS[name]), built(METHOD_CONFIGS[name.split()[0]])
    own = method.state_dict()
    for key, value in without.state_dict().items():
        assert torch.equal(own[key], value), key
    assert {key.partition(".")[0] for key in own.keys() - without.state_dict().keys()} == {
        "encoder_b", "expander_b" if name.startswith("vicreg") else "projector_b",
    }  # fmt: skip
    storages = [value.untyped_storage().data_ptr() for value in method.parameters()]
    assert len(set(storages)) == len(storages)


def test_the_same_architecture_is_drawn_anew() -> None:
    config = VICRegConfig(expander=(8, 8), branch_b=("resnet18",))
    method = config.build(BuildContext(lambda *words: Small()))  # pyright: ignore[reportArgumentType]
    assert not torch.equal(method.get_parameter("encoder.conv.weight"), method.get_parameter("encoder_b.conv.weight"))


def pair() -> tuple[Any, Any]:
    """Two of the same, of encoders that are traced in no time."""

    def one() -> nn.Module:
        torch.manual_seed(0)
        config = BarlowTwinsConfig(projector=(32, 16), branch_b=("resnet18",), head_b=(24, 16))
        return config.build(BuildContext(lambda *words: Small())).double()  # pyright: ignore[reportArgumentType]

    return one(), one()


@pytest.mark.slow
def test_compiled_and_replayed_steps_are_the_eager_one() -> None:
    eager, compiled = pair()
    wanted = totals(eager, EagerStep(eager, Updater(eager, lars(eager))))
    found = totals(compiled, CompiledStep(compiled, Updater(compiled, lars(compiled)), backend="aot_eager"))
    assert found == pytest.approx(wanted, rel=1e-9)
    replayed, _ = pair()
    optimizer = lars(replayed, capturable=True)
    graphed = GraphedStep(
        replayed, Updater(replayed, optimizer), graphs=TracedGraphs(lambda: held(replayed, optimizer))
    )
    assert totals(replayed, graphed) == pytest.approx(wanted, rel=1e-6)
    assert_alike(replayed, eager, rtol=1e-6, atol=1e-6)


def test_a_cached_step_is_the_eager_one() -> None:
    eager, cached = pair()
    wanted = totals(eager, EagerStep(eager, Updater(eager, lars(eager))))
    found = totals(cached, CachedStep(cached, Updater(cached, lars(cached)), micro_batches=1))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_joint_views_are_each_branch_s_own() -> None:
    separate, joint = pair()
    replace_norms(separate)
    replace_norms(joint, joint=True)
    batch = double(batch_of(8))
    for method in (separate, joint):
        EagerStep(method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0)))(batch, {"lr": 0.1})
    assert_alike(joint, separate, rtol=0, atol=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, uninterrupted: tuple[Path, Path]) -> tuple[TrainConfig, Path]:
    """A finished run of a ResNet and a transformer."""
    config = branched(uninterrupted[0])
    folder = tmp_path_factory.mktemp("branches") / "run"
    train(config, folder)
    return config, folder


def branched(data: Path) -> TrainConfig:
    return replace(tiny(data, epochs=2), method=VICRegConfig(expander=(16, 16), branch_b=VIT, head_b=(24, 16)))


def test_a_run_stopped_in_mid_epoch_goes_on_bit_for_bit(run: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config, whole = run
    train(replace(config, run=replace(config.run, steps=4)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(whole)
    other = replace(config, method=VICRegConfig(expander=(16, 16), branch_b=("resnet18",), head_b=(24, 16)))
    with pytest.raises(UserError, match="was started with --branch-b vit_tiny patch=8"):
        train(other, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_either_encoder_is_evaluated_inspected_and_exported(
    run: tuple[TrainConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run
    a, b = (fastvicreg.load_encoder(folder, encoder=name) for name in "ab")
    assert (a.features, b.features) == (128, 192)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, loaded in (("a", a), ("b", b)):
        file = tmp_path / f"{name}.safetensors"
        assert main(["export", str(folder), str(file), "--encoder", name]) == 0
        torch.testing.assert_close(fastvicreg.load_encoder(file)(x), loaded(x))
        assert main(["eval", "knn", str(folder), "--device", "cpu", "--encoder", name, "--no-cache"]) == 0
        page = tmp_path / f"{name}.html"
        shown = ["inspect", str(folder), "--encoder", name, "--device", "cpu", "--views", "2", "--out", str(page)]
        assert main([*shown, "--json", str(tmp_path / f"{name}.json")]) == 0
        (row,) = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        assert (row["features"]["dimensions"], row["embeddings"]["dimensions"]) == (loaded.features, 16)
    assert {"knn.json", "knn-b.json"} <= {path.name for path in (folder / "eval").iterdir()}
    assert json.loads((folder / "eval" / "knn-b.json").read_text())["rows"][0]["encoder"] == "b"
    capsys.readouterr()
    assert main(["eval", "knn", str(folder), "--encoder", "target"]) == 2
    assert "vicreg has no momentum network" in capsys.readouterr().err
    assert main(["eval", "knn", str(tmp_path / "a.safetensors"), "--encoder", "b"]) == 2
    assert "is a file: leave it out" in capsys.readouterr().err


def test_a_run_of_one_encoder_has_no_second(
    uninterrupted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "knn", str(uninterrupted[1]), "--encoder", "b"]) == 2
    assert "was trained without --branch-b" in capsys.readouterr().err
    with pytest.raises(UserError, match="--encoder c: give a, b of a run"):
        fastvicreg.load_encoder(uninterrupted[1], encoder="c")


def test_words_vary_a_family_s_settings_and_begin_another_s_at_their_defaults() -> None:
    own = ResNetConfig("resnet18", width=16, stem="3x3s2")
    assert varied(own, ("resnet34",)) == ResNetConfig("resnet34", width=16, stem="3x3s2")
    assert varied(own, ("resnet50", "width=32", "stem=7x7")) == ResNetConfig("resnet50", width=32, stem="7x7")
    assert varied(own, VIT) == ViTConfig("vit_tiny", patch=8, grid=2, depth=1)


REFUSED: list[tuple[str, str]] = [
    ("--branch-b", "--branch-b needs an architecture"),
    ("--branch-b resnet81", "unknown architecture 'resnet81'; did you mean"),
    ("--branch-b width=16", "name the architecture first, such as --branch-b resnet18 width=16"),
    ("--branch-b resnet18 widht=3", "did you mean 'width'?"),
    ("--branch-b resnet18 32", "'32' is no setting: give FIELD=VALUE"),
    ("--branch-b resnet18 width=x", "width cannot be 'x'"),
    ("--branch-b resnet18 stem=foo", "stem cannot be 'foo'"),
    ("--branch-b resnet18 width=4", "--width 4 is below 16"),
    ("--head-b 64 512", "of a second branch: give --branch-b ARCH"),
    ("--branch-b resnet18 --head-b 64 32", "ends 32 wide and --expander 512"),
    ("--branch-b resnet18 --head-b 1 512", "has a layer below 2"),
    ("--branch-b resnet18 --predictor", "--predictor is on both views' embeddings of one network"),
    ("--method byol --branch-b resnet18", "--branch-b is a setting of vicreg, not of byol"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_what_contradicts_itself_is_one_line(
    options: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "--preset", "demo", "--out", str(tmp_path / "run"), *options.split()]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert says in told[0]
    assert not (tmp_path / "run").exists()


def test_methods_whose_branches_are_one_network_s_have_no_second() -> None:
    taking = {name for name in METHODS if issubclass(config_class(name), Branched)}
    assert taking == {name.split()[0] for name in BRANCHED_CONFIGS}
