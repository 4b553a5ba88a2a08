"""VICRegL in whole runs: by other steps, among processes, resumed and measured; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from methods import LOCAL, batch_for, vicregl
from runs import require_same_when_resumed, tiny
from stepping import Small
from torch import Tensor
from two_ranks import trained_by_two

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.pipelines.plan import TrainPlan
from fastvicreg.profiles.bench import swap
from fastvicreg.profiles.bench.step import Case, build_case
from fastvicreg.profiles.parts import loss as loss_alone
from fastvicreg.profiles.parts import opened
from fastvicreg.train.batch_norm import replace_norms
from fastvicreg.train.memory import predict
from fastvicreg.train.steps.compiled.step import CompiledStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one() -> None:
    found = []
    for kind in (EagerStep, CompiledStep):
        method = vicregl(build=Small).double()
        step = kind(method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0, momentum=0.9)))
        found.append([float(step(batch_for(method, 8, torch.float64), {"lr": 0.01}).total) for _ in range(3)])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert len(set(found[0])) == 3


def trained(rank: int, size: int) -> dict[str, Tensor]:
    """Weights after two steps on this process's rows of 12, maps of 16 positions."""
    method = vicregl(build=Small).double()
    if size > 1:
        replace_norms(method, impl="reference", ranks=size, group=dist.group.WORLD.group_name)  # type: ignore[union-attr]
    step = EagerStep(
        method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0, momentum=0.9)), world_size=size
    )
    batch = batch_for(method, 12, torch.float64)
    own = slice(rank * 12 // size, (rank + 1) * 12 // size)
    assert batch.places_BV5 is not None
    batch = replace(batch, views=tuple(view[own] for view in batch.views), places_BV5=batch.places_BV5[own])
    for _ in range(2):
        step(batch, {"lr": 0.02})
    return {key: value.detach().clone() for key, value in method.state_dict().items()}


@pytest.mark.slow
def test_two_processes_match_positions_as_one(tmp_path: Path) -> None:
    whole = trained(0, 1)
    for found in trained_by_two(trained, tmp_path):
        for key, value in found.items():
            torch.testing.assert_close(value, whole[key], rtol=1e-7, atol=1e-9)


def run_config(data: Path, **run: Any) -> TrainConfig:
    """Two crops with maps of 4 positions and six with maps of one."""
    config = tiny(data, **({"eval_every": 0, "epochs": 2} | run))
    method = replace(LOCAL, local_matches=(3, 1))
    return replace(config, method=method, data=replace(config.data, image_size=32, recipe="multicrop", small_size=16))


@pytest.mark.slow
def test_a_multicrop_run_is_resumed_and_measured(make_folder: Any, tmp_path: Path) -> None:
    config = run_config(make_folder())
    folder = require_same_when_resumed(config, tmp_path)
    assert main(["eval", "knn", str(folder), "--k", "2"]) == 0
    assert main(["export", str(folder), str(tmp_path / "encoder.safetensors")]) == 0
    with opened(config) as run:
        assert {column.short for column in run.columns} == {"inv", "var", "cov", "l-inv", "l-var", "l-cov", "std"}
        loop = loss_alone(config, run)
        assert next(loop) == next(loop)
    rows = swap.run(config, repeats=1, window=1)
    assert all(row["images_per_s"] > 0 for row in rows)
    subject = build_case(config, Case(), "cpu", 4)  # two views of noise, and places with them
    subject()
    assert subject.batch.inputs[-1].shape == (4, 2, 5)


def test_its_memory_is_told_before_a_run(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    local, alone = (predict(replace(config, method=replace(LOCAL, alpha=a, local_matches=(1,))), 8, precision="off")
                    for a in (0.9, 1.0))  # fmt: skip
    assert local.kept > alone.kept > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alpha": 0.0}, "--alpha 0.0 is no share of the global criterion"),
        ({"alpha": 1.5}, "--alpha 1.5 is no share"),
        ({"local_projector": (1,)}, "--local-projector 1 has a layer below 2"),
        ({"expander": (32, 1)}, "--expander 32 1 has a layer below 2"),
        ({"local_matches": (20, 4, 4)}, "--local-matches 20 4 4: give one"),
        ({"local_matches": (0,)}, "--local-matches 0: give one"),
        ({"local_features": False, "local_locations": False}, "leave --alpha 0.75 nothing local"),
        ({"covariance": float("nan")}, "--covariance nan cannot train"),
    ],
)
def test_settings_that_cannot_train_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        replace(LOCAL, **settings).check()
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--local-matches", "50"], "--local-matches 50 is more than the 4 positions that a view of 32 px has"),
        (
            ["--local-matches", "9", "--resolution", "64:32", "--epochs", "2"],
            "more than the 4 positions that a view of 32",
        ),
        (["--local-matches", "50", "--step", "compiled"], "--local-matches 50 is more than the 4"),
        (["--arch", "resnet18", "--pair", "image", "text"], "vicregl has one network for all views"),
    ],
)
def test_runs_that_cannot_be_are_refused_in_a_line(
    given: list[str], says: str, make_folder: Any, capsys: Any, tmp_path: Path
) -> None:
    command = [
        "train",
        "--preset",
        "demo",
        "--data",
        str(make_folder()),
        "--method",
        "vicregl",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*command, "--batch-size", "4", *given]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_maps_are_checked_once_a_size_however_many_epochs(
    make_folder: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked, sizes = [], TrainPlan.sizes

    def counted(plan: TrainPlan, epoch: int) -> tuple[int, ...]:
        asked.append(epoch)
        return sizes(plan, epoch)

    monkeypatch.setattr(TrainPlan, "sizes", counted)
    command = ["train", "--preset", "demo", "--data", str(make_folder()), "--method", "vicregl", "--batch-size", "4"]
    given = ["--local-matches", "9", "--resolution", "96:64:32", "--epochs", "100000", "--out", str(tmp_path / "run")]
    assert main([*command, *given]) == 2
    assert "more than the 4 positions that a view of 32" in capsys.readouterr().err
    assert max(asked) == 66667
    assert len(asked) < 10


def test_an_encoder_without_a_map_is_refused_unless_nothing_is_local() -> None:
    class Flat(Small):
        map_features = 0

    with pytest.raises(UserError, match="and Flat gives none: give --arch resnet50"):
        vicregl(build=Flat)
    assert not vicregl(replace(LOCAL, alpha=1.0), build=Flat).local_projector
