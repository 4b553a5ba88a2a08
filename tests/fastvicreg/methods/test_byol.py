"""BYOL on the seams that VICReg uses: its values, its target network, and a whole run of it through every command."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import batch_of, encoder
from runs import log, tiny, train
from skipping import Skipping
from vectors import assert_vector

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Horizon
from fastvicreg.errors import UserError
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.byol.method import BYOL, byol_loss
from fastvicreg.profiles.bench import swap
from fastvicreg.profiles.capture import Settings, capture
from fastvicreg.train.checkpoint import listed
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater

SMALL = BYOLConfig(projector=(32, 16), predictor_hidden=(32,), momentum=0.9)


def byol() -> BYOL:
    torch.manual_seed(0)
    return BYOL(encoder(), SMALL)


def stepped(method: BYOL, optimizer: torch.optim.Optimizer, momentum: float, *, spoilt: bool = False) -> None:
    batch = batch_of(6)
    if spoilt:
        batch = replace(batch, views=tuple(view * torch.nan for view in batch.views))
    EagerStep(method, Updater(method, optimizer))(batch, {"lr": 0.1, "momentum": momentum})


def test_the_loss_has_the_published_form_s_value_and_gradients() -> None:
    """Reference values in fp64 from solo-learn's byol_loss_func, both directions, predictions taken as projections."""
    expected = 0.146266698141, 0.101078297022, 0.094336833363
    assert_vector(lambda za, zb: byol_loss(za, zb) + byol_loss(zb, za), *expected)


def test_the_target_follows_by_the_momentum_and_takes_no_gradient() -> None:
    method = byol()
    weight = method.get_parameter("encoder.conv1.weight")
    target = method.get_parameter("target_encoder.network.conv1.weight")
    before = weight.detach().clone()
    assert torch.equal(target, before)
    stepped(method, torch.optim.SGD(method.parameters(), lr=0.0), 0.75)
    assert not torch.equal(weight, before)
    torch.testing.assert_close(target.detach(), 0.75 * before + 0.25 * weight.detach())
    assert target.grad is None
    trained = {id(param) for group in method.param_groups() for param in group.params}
    assert trained == {id(param) for name, param in method.named_parameters() if not name.startswith("target_")}


@pytest.mark.parametrize("on_device", [False, True])
def test_a_skipped_step_leaves_the_target_where_it_was(on_device: bool) -> None:
    method = byol()
    optimizer = Skipping(method.parameters()) if on_device else torch.optim.SGD(method.parameters(), lr=0.0)
    stepped(method, optimizer, 0.5)
    before = copy.deepcopy(method.state_dict())
    if on_device:
        stepped(method, optimizer, 0.5, spoilt=True)
        method.after_update({"momentum": 0.5}, torch.tensor(False))
    else:
        method.after_update({"momentum": 0.5}, False)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    method.after_update({"momentum": 0.5}, torch.tensor(True))  # negative control
    moved = "target_encoder.network.conv1.weight"
    assert not torch.equal(method.state_dict()[moved], before[moved])


def test_the_momentum_rises_from_its_start_to_one() -> None:
    schedule = byol().schedules(Horizon(100, 10, 256))["momentum"]
    assert schedule(0) == pytest.approx(0.9)
    assert schedule(50) == pytest.approx(0.95)
    assert schedule(100) == 1.0
    assert schedule(30) == pytest.approx(1 - 0.1 * (1 + math.cos(math.pi * 0.3)) / 2)


def config(data: Path, **run: Any) -> TrainConfig:
    return replace(tiny(data, **run), method=SMALL)


@pytest.fixture(scope="module")
def whole(uninterrupted: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data, run) of a whole run."""
    data, _ = uninterrupted
    folder = tmp_path_factory.mktemp("byol")
    train(config(data), folder / "run")
    return data, folder / "run"


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_run_equals_the_uninterrupted_one(whole: tuple[Path, Path], tmp_path: Path, stop: int) -> None:
    data, run = whole
    train(config(data, steps=stop), tmp_path / "run")
    train(config(data), tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(run)
    assert len({row["total"] for row in log(run) if "total" in row}) == 9


def test_log_and_display_show_its_own_terms_and_schedule(whole: tuple[Path, Path]) -> None:
    _, run = whole
    rows = [row for row in log(run) if "total" in row]
    assert set(rows[0]) == {
        *("epoch", "step", "total", "prediction", "projection_std", "projection_std_healthy", "lr", "momentum")
    }
    assert rows[0]["momentum"] == pytest.approx(0.9)
    assert rows[-1]["momentum"] > 0.99
    shown = (run.parent / "display.txt").read_text()
    assert "byol · resnet18" in shown
    assert " pred " in shown
    assert " momentum " in shown
    assert " inv " not in shown


def test_it_is_evaluated(whole: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, run = whole
    assert main(["eval", "knn", str(run), "--k", "3", "--device", "cpu"]) == 0
    assert "knn: " in capsys.readouterr().out
    assert len(listed(run / "checkpoints")) == 2


@pytest.mark.parametrize("part", ["loss", "lars", "step"])
def test_its_parts_are_profiled(whole: tuple[Path, Path], tmp_path: Path, part: str) -> None:
    captured = capture(config(whole[0]), tmp_path, part=part, settings=Settings(wait=0, warmup=1, active=1))
    assert captured.trace.is_file()


@pytest.mark.slow
def test_its_parts_are_swapped(whole: tuple[Path, Path]) -> None:
    rows = swap.run(config(whole[0]), repeats=1, window=2)
    assert {row["swap"] for row in rows} >= {swap.FULL, swap.MODEL, *swap.WITHOUT.values()} - {"no communication"}


def test_the_command_line_shows_and_takes_its_settings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--method", "byol", "--help"])
    text = capsys.readouterr().out
    assert "--momentum" in text
    assert "--expander" not in text
    assert main(["train", "--method", "byol", "--momentum", ".97", "--print-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    network = {"projector": [4096, 256], "predictor": True, "predictor_hidden": [4096], "batch_norm": True}
    targets = {"momentum_encoder": True, "momentum": 0.97, "stop_gradient": True}
    terms = {"variance": 0.0, "covariance": 0.0, "regularize": "normalized"}
    assert shown["method"] == {"name": "byol", **network, **targets, **terms}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--momentum .9", "--momentum is a setting of byol, not of vicreg: give --method byol"),
        ("--method byol --expander 8 8", "--expander is a setting of vicreg, not of byol: give --method vicreg"),
        ("--no-momentum-encoder", "--no-momentum-encoder is a setting of byol, not of vicreg: give --method byol"),
        ("--method byol --no-momentum-encoder --momentum .9", "--momentum 0.9 needs a target network"),
        ("--method byol --no-stop-gradient", "--no-stop-gradient needs --no-momentum-encoder"),
        ("--method byol --variance -1", "--variance -1.0 cannot train"),
        ("--method byol --regularize raw", "--regularize raw has nothing to act on"),
        ("--method boyl", "unknown method 'boyl'; did you mean 'byol'?"),
        ("--method byol --momentum 2", "--momentum 2.0 is no share"),
        ("--method byol --projector 1", "--projector 1 has a layer below 2"),
    ],
)
def test_a_foreign_or_impossible_setting_is_one_line(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments.split()]) == 2
    assert says in capsys.readouterr().err


def test_a_run_of_another_method_is_not_resumed(whole: tuple[Path, Path]) -> None:
    data, run = whole
    with pytest.raises(UserError, match="was started with --method byol, not vicreg"):
        train(tiny(data), run, resume=True)
