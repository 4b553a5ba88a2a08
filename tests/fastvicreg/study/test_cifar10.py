"""``study cifar10``: its rows, a tiny study end to end at both scales, one that is stopped and goes on, mistakes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from images import encoded, photo
from PIL import Image
from rich.console import Console

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.datasets import recipe_of
from fastvicreg.show.metrics import read
from fastvicreg.study import runs
from fastvicreg.study.cifar10 import results, study
from fastvicreg.study.cifar10.rows import ROWS, row_config
from fastvicreg.study.cifar10.study import Cifar10

SECONDS, STEPS, PER_EPOCH, VIEWS = 80, 8, 3, 2
BATCH, TRAIN, TEST = 8, 24, 12


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", TRAIN), ("test", TEST)):
        for number in range(count):
            path = root / split / f"class{number % 3}" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(number + 100 * (split == "test"), 32, 32), "PNG"))
    return root


def ten_seconds_a_step(config: TrainConfig) -> runs.StepTime:
    return runs.StepTime(10.0, 10.0, 0.0, PER_EPOCH)


def small(name: str, scale: study.Scale) -> TrainConfig:
    """The row with a network and a batch that a test has time for."""
    config: Any = row_config(name, scale)
    encoder = replace(config.encoder, width=16, stem="3x3s2")
    widths = {"expander": (16, 16)} if name.startswith("vicreg") else {"projector": (16, 16)}
    method = replace(config.method, **widths)
    run = replace(config.run, batch_size=BATCH, precision="auto")
    return replace(config, encoder=encoder, method=method, run=run, data=replace(config.data, image_size=16))


@pytest.fixture(autouse=True)
def made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "row_config", small)
    monkeypatch.setattr(runs, "step_time", ten_seconds_a_step)
    monkeypatch.setattr(runs, "steps_in_turns", partial(runs.steps_in_turns, turns=1))  # each collects garbage


def carried_out(images: Path, out: Path, *more: str) -> int:
    settings = ("--workers", "1", "--device", "cpu", "--only", "vicreg", "vicreg-no-variance")
    return main(["study", "cifar10", "--data", str(images), "--out", str(out), *settings, *more])


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["title"]: row for row in json.loads((out / "cifar10.json").read_text())["rows"]}


def test_rows_are_settings_that_a_run_can_have_at_both_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = row_config("vicreg", "cpu")
    for name in ROWS:
        for scale in ("cpu", "full"):
            row_config(name, scale).check()
        cpu, full = row_config(name, "cpu"), row_config(name, "full")
        if name == "vicreg-4views":
            assert (cpu.method, full.method) == (shared.method, row_config("vicreg", "full").method)
            continue
        assert (cpu.encoder, cpu.optim, cpu.data, cpu.run) == (
            shared.encoder,
            shared.optim,
            shared.data,
            shared.run,
        )
        assert cpu.method.name == full.method.name
        assert full.encoder.width == 64  # type: ignore[attr-defined]
    without: Any = row_config("vicreg-no-variance", "cpu").method
    assert replace(without, variance=25.0) == shared.method


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_four_views_of_half_the_images_are_a_step_of_as_many_views_and_the_same_rate(scale: study.Scale) -> None:
    four, two = row_config("vicreg-4views", scale), row_config("vicreg", scale)
    assert (four.run.batch_size, four.data.num_views) == (two.run.batch_size // 2, 4)
    assert len(recipe_of(four.data).views) == 2 * len(recipe_of(two.data).views)
    rates = [config.optim.base_lr * config.run.batch_size for config in (four, two)]
    assert rates[0] == rates[1]
    for section in ("encoder", "method"):
        assert getattr(four, section) == getattr(two, section)
    assert replace(four.run, batch_size=two.run.batch_size) == two.run
    assert replace(four.data, num_views=0) == two.data


def test_the_row_of_four_views_counts_them(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    settings = ("--workers", "1", "--device", "cpu", "--only", "vicreg-4views", "--seeds", "1")
    more = ("--cpu-seconds", str(SECONDS), "--out", str(out))
    assert main(["study", "cifar10", "--data", str(images), *settings, *more]) == 0
    found = rows_of(out)["VICReg, four views"]
    assert found["views"] == STEPS * BATCH * 4
    assert found["knn"] > 0
    assert found["evaluation_views"] == TRAIN + TEST


@pytest.mark.slow
def test_a_study_by_cpu_time_writes_runs_figures_and_picture(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    more = ("--cpu-seconds", str(SECONDS), "--seeds", "2", "--json", str(tmp_path / "copy.json"))
    assert carried_out(images, out, *more) == 0
    content = json.loads((out / "cifar10.json").read_text())
    assert content == json.loads((tmp_path / "copy.json").read_text())
    assert (content["command"], content["n"]) == ("study cifar10", 2)
    assert content["settings"]["cpu_seconds"] == SECONDS
    assert content["step_cpu_seconds"] == {"vicreg": 10.0, "vicreg-no-variance": 10.0}
    found = rows_of(out)
    assert list(found) == ["raw pixels", "random network", "VICReg", "VICReg without variance"]
    for name in ("vicreg", "vicreg-no-variance"):
        for seed in range(2):
            log = read(out / f"{name}-seed{seed}")
            steps = [row for row in log if "total" in row]
            assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
            # The schedule ends with the run, in mid-epoch.
            assert steps[-1]["lr"] < 0.1 * max(row["lr"] for row in steps)
    own = found["VICReg"]
    assert own["views"] == STEPS * BATCH * VIEWS
    assert own["evaluation_views"] == TRAIN + TEST
    assert len(own["seeds"]["cpu_seconds"]) == 2
    assert own["cpu_seconds"] > 0
    assert own["seeds"]["std"][0] != own["seeds"]["std"][1]
    assert own["spread"]["knn"] == [min(own["seeds"]["knn"]), max(own["seeds"]["knn"])]
    assert found["random network"]["seeds"]["std"][0] != found["random network"]["seeds"]["std"][1]
    assert found["raw pixels"]["std"] is None
    assert Image.open(out / "cifar10.png").format == "PNG"
    assert carried_out(images, out, "--cpu-seconds", str(SECONDS), "--seeds", "1", "--only", "vicreg") == 0
    assert rows_of(out) == found, "a part that is asked for later leaves the rest in the figures"


@pytest.mark.slow
def test_a_row_asked_for_later_is_timed_beside_an_earlier_one(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "study", ("--workers", "1", "--cpu-seconds", str(SECONDS), "--seeds", "1")
    assert main(["study", "cifar10", "--data", str(images), "--out", str(out), *settings, "--only", "vicreg"]) == 0

    def half_as_fast(config: TrainConfig) -> runs.StepTime:
        return ten_seconds_a_step(config)._replace(cpu_seconds=20.0 if config.data.num_views == 0 else 10.0)

    monkeypatch.setattr(runs, "step_time", half_as_fast)
    both = ("--only", "vicreg", "vicreg-4views")
    assert main(["study", "cifar10", "--data", str(images), "--out", str(out), *settings, *both]) == 0
    kept = json.loads((out / "study.json").read_text())
    assert kept["step_cpu_seconds"] == {"vicreg": 10.0, "vicreg-4views": 5.0}
    assert rows_of(out)["VICReg, four views"]["views"] == 2 * STEPS * BATCH * 4


def test_cpu_seconds_are_of_one_thread(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, seen = torch.get_num_threads(), []

    def taken(config: TrainConfig) -> runs.StepTime:
        seen.append(torch.get_num_threads())
        return ten_seconds_a_step(config)

    monkeypatch.setattr(runs, "step_time", taken)
    try:
        torch.set_num_threads(3)
        assert carried_out(images, tmp_path / "study", "--cpu-seconds", "1") == 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {1}


@pytest.mark.slow
def test_a_study_by_epochs_has_a_schedule_for_each_length(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert carried_out(images, out, "--epochs", "10", "1", "--seeds", "1") == 0
    found = rows_of(out)
    assert [row["title"] for row in found.values() if row["row"] == "vicreg"] == [
        "VICReg, 1 epochs",
        "VICReg, 10 epochs",
    ]
    assert found["VICReg, 10 epochs"]["published_linear"] == 69.7
    assert found["VICReg without variance, 10 epochs"]["published_linear"] is None
    steps = [row for row in read(out / "vicreg-1ep-seed0") if "total" in row]
    assert len(steps) == PER_EPOCH
    assert steps[-1]["lr"] < max(row["lr"] for row in steps)


@pytest.mark.slow
def test_a_stopped_study_goes_on_and_says_that_the_time_is_not_known(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "study", runs.train

    def cut(config: TrainConfig, folder: Path) -> runs.Trained:
        real(replace(config, run=replace(config.run, steps=4)), folder)
        raise KeyboardInterrupt

    more = ("--cpu-seconds", str(SECONDS), "--seeds", "1")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", cut)
        assert carried_out(images, out, *more) == 130
    baseline = (out / "pixels" / "result.json").stat().st_mtime_ns
    assert carried_out(images, out, *more) == 0
    assert (out / "pixels" / "result.json").stat().st_mtime_ns == baseline
    steps = [row["step"] for row in read(out / "vicreg-seed0") if "total" in row]
    assert steps == list(range(1, STEPS + 1))
    found = rows_of(out)
    assert found["VICReg"]["views"] == STEPS * BATCH * VIEWS
    assert found["VICReg"]["cpu_seconds"] is None
    assert found["VICReg without variance"]["cpu_seconds"] > 0


def test_what_a_diverged_run_took_is_not_in_the_costs() -> None:
    whole = {"knn": 40.0, "linear": 45.0, "views": 100, "cpu_seconds": 10.0}
    (row,) = results.summary({("byol", 0): [{"diverged": "step 3", "views": 0, "cpu_seconds": 1.0}, whole]})
    assert (row["diverged"], row["views"], row["cpu_seconds"]) == (1, 100, 10.0)


def test_data_of_less_than_a_batch_are_told_of(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "row_config", row_config)
    assert carried_out(images, tmp_path / "study") == 2
    said = f"--data {images} has {TRAIN} images to train on, less than a batch of 256: give more."
    assert said in capsys.readouterr().err


def test_a_row_whose_runs_diverged_is_shown_as_such(tmp_path: Path) -> None:
    found = {
        ("vicreg", 0): [{"diverged": "step 3", "views": 10, "cpu_seconds": 1.0}],
        ("byol", 0): [{"knn": 40.0, "linear": 45.0}],
    }
    rows = results.summary(found)
    assert rows[0]["diverged"] == 1
    assert rows[0]["knn"] is None
    text = io.StringIO()
    Console(file=text, width=200).print(results.table(rows, 1))
    Console(file=text, width=200).print(results.table(rows, 2))
    assert "median (least, most) of 2 seeds" in text.getvalue()
    assert "diverged" in text.getvalue()
    assert "40.0" in text.getvalue()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "moco"], "unknown row 'moco'"),
        (["--seeds", "0"], "--seeds 0: give at least one"),
        (["--scale", "cpu", "--epochs", "10"], "--epochs 10 is --scale full's"),
        (["--epochs", "10", "--cpu-seconds", "60"], "--cpu-seconds 60 is --scale cpu's"),
        (["--scale", "full", "--cpu-seconds", "60"], "--cpu-seconds 60 is --scale cpu's"),
        (["--scale", "full", "--epochs", "10", "10"], "--epochs 10: give different numbers"),
        (["--scale", "full", "--epochs", "0"], "--epochs 0: give different numbers"),
        (["--device", "cuda:0"], "--device cuda:0 is --scale full's"),
        (["--cpu-seconds", "-1"], "--cpu-seconds -1: give a number above 0"),
        (["--cpu-seconds", "nan"], "--cpu-seconds nan: give a number above 0"),
        (["--cpu-seconds", "50"], "--cpu-seconds 50 are 5 steps of vicreg here: give 80 or more"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(images), "--out", str(tmp_path / "new"), "--workers", "1", "--device", "cpu"]
    assert main(["study", "cifar10", *where, *arguments]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1


def test_data_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "cifar10"]) == 2
    assert "study cifar10 needs --data" in capsys.readouterr().err


def test_cpu_time_is_counted_of_runs_on_the_cpu() -> None:
    assert Cifar10(data="x").config("vicreg").run.device == "cpu"
    assert Cifar10(data="x", scale="full").config("vicreg").run.device == "auto"


def test_options_know_their_lengths() -> None:
    assert Cifar10(data="x").lengths() == (0,)
    assert Cifar10(data="x", scale="full").lengths() == (10, 30)
    assert Cifar10(data="x", epochs=(30, 1)).lengths() == (1, 30)
    assert Cifar10(data="x", epochs=(30, 1)).config("vicreg") == Cifar10(data="x", scale="full").config("vicreg")
