"""The probe learns what logistic regression by SGD learns, from a run's own passes, and changes nothing of the run."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import probing
import pytest
import torch
import torch.nn.functional as F
from methods import METHOD_CONFIGS
from runs import log, tiny, train
from torch import Tensor, nn

from fastvicreg.cli import main
from fastvicreg.contracts import Method, Terms
from fastvicreg.errors import UserError
from fastvicreg.show.metrics import read
from fastvicreg.train.assemble import assemble
from fastvicreg.train.online_probe import MOMENTUM, OnlineProbe
from fastvicreg.train.steps.compiled.config import CompiledConfig
from fastvicreg.train.steps.compiled.step import CompiledStep
from fastvicreg.train.updater import Updater


class TracedConfig(CompiledConfig):
    """The compiled step up to its compiler: what inductor makes of the graphs takes minutes."""

    def build(self, method: Method, updater: Updater, *, device: str, precision: str, world_size: int) -> CompiledStep:
        return CompiledStep(
            method, updater, device=device, precision=precision, world_size=world_size, backend="aot_eager"
        )


NONE = Terms(torch.tensor(0.0), {})
FIGURES = ("probe", "probe_loss", "probe_accuracy")


def heard(*features: Tensor, classes: int = 3) -> OnlineProbe:
    """A probe that has heard these passes."""
    probe, encoder = OnlineProbe(features[0].shape[1], classes), nn.Identity().train()
    probe.listen(encoder)
    for each in features:
        encoder(each)
    return probe


def test_it_is_logistic_regression_by_sgd_with_momentum() -> None:
    torch.manual_seed(0)
    weight, bias = torch.zeros(3, 5, requires_grad=True), torch.zeros(3, requires_grad=True)
    sgd = torch.optim.SGD([weight, bias], lr=0.3, momentum=MOMENTUM)
    probe = OnlineProbe(5, 3)
    encoder = nn.Identity()
    probe.listen(encoder)
    for step in range(5):
        views, label_B = torch.randn(2, 8, 5), torch.randint(0, 3, (8,))
        label_B[step] = -1  # one without a label
        known = label_B.repeat(2) >= 0
        logits = F.linear(views.flatten(0, 1), weight, bias)
        loss = F.cross_entropy(logits[known], label_B.repeat(2)[known])
        right = float((logits.argmax(1) == label_B.repeat(2))[known].float().mean() * 100)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        encoder(views[0])
        encoder(views[1])
        terms = probe.learn(NONE, label_B, 0.3)
        assert float(terms.parts["probe_loss"]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(terms.parts["probe_accuracy"]) == pytest.approx(right, rel=1e-5)
        assert torch.allclose(probe.weight_CF, weight, atol=1e-6)
        assert torch.allclose(probe.bias_C, bias, atol=1e-6)
    features_BF = torch.randn(9, 5)
    assert torch.equal(probe.predict(features_BF), F.linear(features_BF, weight, bias).argmax(1))


def test_joint_views_and_one_after_another_are_the_same() -> None:
    views, label_B = torch.randn(2, 6, 4), torch.arange(6) % 3
    one, two = heard(*views), heard(views.flatten(0, 1))
    assert one.learn(NONE, label_B, 1.0).parts["probe_loss"] == two.learn(NONE, label_B, 1.0).parts["probe_loss"]
    assert torch.equal(one.weight_CF, two.weight_CF)


def test_it_hears_training_passes_alone_and_each_once() -> None:
    probe, encoder = OnlineProbe(4, 3), nn.Identity()
    probe.listen(encoder)
    encoder.eval()(torch.full((6, 4), torch.nan))
    encoder.train()(torch.ones(6, 4))
    label_B = torch.zeros(6, dtype=torch.int64)
    assert probe.learn(NONE, label_B, 1.0).parts["probe_loss"].isfinite()
    encoder(torch.ones(2, 4))
    assert probe.learn(NONE, label_B[:2], 1.0).parts["probe_accuracy"] == 100


def test_features_that_are_not_finite_do_not_move_it() -> None:
    views = torch.randn(6, 4)
    views[3, 1] = torch.nan
    probe = heard(views)
    probe.learn(NONE, torch.arange(6) % 3, 1.0)
    assert not any(buffer.any() for buffer in probe.buffers())


@pytest.mark.slow
def test_two_processes_learn_what_one_does_of_both_shares(tmp_path: Path) -> None:
    first, second = probing.two_processes(tmp_path)
    assert torch.equal(first, second)
    assert torch.allclose(first, probing.learnt(), atol=1e-6)


def without(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in FIGURES} for row in rows]


@pytest.fixture(scope="module")
def probed(uninterrupted: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probed") / "run"
    train(tiny(uninterrupted[0], probe="linear"), folder)
    return folder


def test_the_run_is_the_same_with_it_and_its_figures_are_logged(uninterrupted: tuple[Path, Path], probed: Path) -> None:
    assert without(log(probed)) == log(uninterrupted[1])
    steps = [row for row in read(probed) if "total" in row]
    assert all(0 <= row["probe_accuracy"] <= 100 and row["probe_loss"] > 0 for row in steps)
    assert len({row["probe_loss"] for row in steps}) > len(steps) / 2
    evaluations = [row for row in read(probed) if "knn" in row]
    assert evaluations
    assert all(0 <= row["probe"] <= 100 for row in evaluations)


def test_it_is_resumed_bit_for_bit(uninterrupted: tuple[Path, Path], probed: Path, tmp_path: Path) -> None:
    config = tiny(uninterrupted[0], probe="linear")
    train(replace(config, run=replace(config.run, steps=4)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(probed)


@pytest.mark.slow
def test_the_runs_encoder_is_still_evaluated_and_inspected(
    probed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "knn", str(probed), "--k", "3"]) == 0
    assert main(["inspect", str(probed), "--out", str(tmp_path / "page.html")]) == 0
    assert "epoch" not in capsys.readouterr().err


def test_without_a_trainer_it_hears_and_keeps_nothing(uninterrupted: tuple[Path, Path]) -> None:
    run = assemble(tiny(uninterrupted[0], probe="linear"))
    features_BF = run.encoder.train()(torch.zeros(2, 3, 16, 16))
    alive = weakref.ref(features_BF)
    del features_BF
    run.engine.close()
    assert alive() is None


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_method_can_be_heard(name: str, uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny(uninterrupted[0], probe="linear", steps=2, eval_every=0)
    train(replace(config, method=METHOD_CONFIGS[name]), tmp_path / "run")
    assert all(row["probe_loss"] > 0 for row in read(tmp_path / "run"))


@pytest.mark.slow
def test_a_compiled_step_is_heard(uninterrupted: tuple[Path, Path], probed: Path, tmp_path: Path) -> None:
    config = tiny(uninterrupted[0], probe="linear", steps=3, eval_every=0)
    train(replace(config, step=TracedConfig()), tmp_path / "run")
    expected = [row["probe_loss"] for row in read(probed) if "total" in row][:3]
    assert [row["probe_loss"] for row in read(tmp_path / "run")] == pytest.approx(expected, rel=1e-3)


def test_joint_views_are_heard(uninterrupted: tuple[Path, Path], probed: Path, tmp_path: Path) -> None:
    train(tiny(uninterrupted[0], probe="linear", views="joint", steps=3, eval_every=0), tmp_path / "run")
    expected = [row["probe_loss"] for row in read(probed) if "total" in row][:3]
    assert [row["probe_loss"] for row in read(tmp_path / "run")] == pytest.approx(expected, rel=1e-3)


def test_steps_that_it_cannot_hear_and_data_without_classes_are_one_line(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = uninterrupted[0]
    common = ["train", "--preset", "demo", "--probe", "linear", "--batch-size", "8", "--out", str(tmp_path / "run")]
    assert main([*common, "--data", str(data), "--step", "cached"]) == 2
    assert "--probe linear hears the passes of --step eager and compiled alone" in capsys.readouterr().err
    assert main([*common, "--data", str(data / "train" / "class0")]) == 2
    assert "has no classes to learn" in capsys.readouterr().err
    assert main([*common, "--data", str(data), "--probe-lr", "0"]) == 2
    assert "--probe-lr 0.0 cannot train" in capsys.readouterr().err
    train(tiny(data, steps=1), tmp_path / "other")
    with pytest.raises(UserError, match="--probe"):
        train(tiny(data, probe="linear"), tmp_path / "other", resume=True)
