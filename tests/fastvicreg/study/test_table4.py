"""``study table4``: its cells, a tiny study end to end, one that is killed and goes on, and what a mistake says."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from images import encoded, photo
from PIL import Image

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.errors import DivergedError
from fastvicreg.show.metrics import read
from fastvicreg.study import runs
from fastvicreg.study.budget import equal_steps, seconds_of
from fastvicreg.study.table4.rows import CELLS, cell_config

ONLY = ("simsiam-bare-none", "simsiam-bare-var")
STEPS, PER_EPOCH = 7, 3


def slow_steps(config: TrainConfig) -> runs.StepTime:
    """Of 250 s each, so that an hour has 7 for each of two runs, whatever this machine does: two epochs and a step."""
    return runs.StepTime(250.0, 250.0, 0.0, PER_EPOCH)


def study(images: Path, out: Path, *more: str) -> int:
    settings = ("--budget", "1h", "--seeds", "1", "--batch-size", "8", "--workers", "1", "--device", "cpu")
    return main(["study", "table4", "--data", str(images), "--out", str(out), "--only", *ONLY, *settings, *more])


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two cells that nothing stopped."""
    out = tmp_path_factory.mktemp("studies") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "step_time", slow_steps)
        assert study(images, out, "--json", str(out.parent / "copy.json")) == 0
    return out


def figures(out: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((out / "table4.json").read_text())["rows"]
    return {f"{row['row']}-{row['column']}": row for row in rows}


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "train_seconds"} for row in figures(out).values()]


def test_all_cells_are_settings_that_a_run_can_have_at_both_scales() -> None:
    assert len(CELLS) == len(set(CELLS)) == 24
    made = {}
    for cell in CELLS:
        for scale in ("cpu", "paper"):
            config = cell_config(cell, scale)
            config.check()
            made[scale, str(config.method)] = config
    assert len(made) == 48, "two cells have the same method"


def test_cells_are_the_papers() -> None:
    simsiam: Any = cell_config("simsiam-bare-varcov", "paper")
    assert (simsiam.method.variance, simsiam.method.covariance) == (1.0, 0.01)
    assert (simsiam.method.batch_norm, simsiam.method.predictor, simsiam.method.stop_gradient) == (False, False, True)
    assert (simsiam.optim.optimizer, simsiam.optim.base_lr, simsiam.run.batch_size) == ("sgd", 0.05, 2048)
    assert simsiam.optim.warmup_epochs == 10
    byol: Any = cell_config("byol-none", "paper")
    assert (byol.method.variance, byol.method.covariance, byol.method.momentum) == (0.0, 0.0, 0.99)
    assert (byol.optim.base_lr, byol.run.batch_size, byol.run.epochs) == (0.45, 4096, 100)
    vicreg: Any = cell_config("vicreg-pr-bn-var", "paper")
    assert (vicreg.method.invariance, vicreg.method.variance, vicreg.method.covariance) == (25.0, 25.0, 0.0)
    assert (vicreg.method.predictor, vicreg.method.batch_norm) == (True, True)


def test_a_study_writes_runs_table_and_picture(whole: Path) -> None:
    content = json.loads((whole / "table4.json").read_text())
    assert (content["command"], content["n"]) == ("study table4", 1)
    assert {"commit", "versions", "hardware"} <= set(content)
    assert content == json.loads((whole.parent / "copy.json").read_text())
    found = figures(whole)
    assert set(found) == {*ONLY, "random network-"}
    for cell in ONLY:
        assert [row["step"] for row in read(whole / f"{cell}-seed0")] == list(range(1, STEPS + 1))
        assert found[cell]["paper_linear"] == (None if cell.endswith("none") else 56.8)
        assert 0 <= found[cell]["std_normalized"] <= 1.01
        assert found[cell]["seeds"]["knn"] == [found[cell]["knn"]]
    assert found[ONLY[0]]["std_normalized"] != found[ONLY[1]]["std_normalized"]
    assert Image.open(whole / "table4.png").format == "PNG"
    assert (whole / "table4.png").stat().st_size < 200_000


@pytest.mark.slow
def test_a_killed_study_goes_on_and_repeats_nothing(
    whole: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "step_time", slow_steps)
    out, real = tmp_path / "killed", runs.train
    first, second = (out / f"{cell}-seed0" for cell in ONLY)

    def killed(config: TrainConfig, folder: Path) -> runs.Trained:
        if folder == second:
            real(replace(config, run=replace(config.run, steps=4)), folder)
            raise KeyboardInterrupt
        return real(config, folder)

    monkeypatch.setattr(runs, "train", killed)
    assert study(images, out) == 130
    assert not (out / "table4.json").exists()
    logged = (first / "metrics.jsonl").stat()
    trained = []

    def counted(config: TrainConfig, folder: Path) -> runs.Trained:
        trained.append(folder)
        return real(config, folder)

    monkeypatch.setattr(runs, "train", counted)
    assert study(images, out) == 0
    assert trained == [second]
    assert (first / "metrics.jsonl").stat().st_mtime_ns == logged.st_mtime_ns
    assert [row["step"] for row in read(second)] == list(range(1, STEPS + 1))
    assert "resumed" in (second / "display.txt").read_text()
    assert timeless(out) == timeless(whole)
    trained.clear()
    assert study(images, out) == 0
    assert not trained


def test_a_diverged_run_is_told_of_and_does_not_end_the_study(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Diverges:
        def __init__(self, config: TrainConfig, folder: Path, **_: Any) -> None: ...

        def train(self) -> None:
            raise DivergedError("no longer finite")

    monkeypatch.setattr(runs, "step_time", slow_steps)
    monkeypatch.setattr(runs, "Trainer", Diverges)
    assert study(images, tmp_path / "out") == 0
    assert all(figures(tmp_path / "out")[cell]["diverged"] == 1 for cell in ONLY)
    assert all(figures(tmp_path / "out")[cell]["collapsed"] for cell in ONLY)


def test_a_study_that_a_short_budget_ended_takes_the_longer_one(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "step_time", slow_steps)
    out = tmp_path / "study"
    assert study(images, out, "--budget", "1s") == 2
    assert "--budget 1s is too short" in capsys.readouterr().err
    monkeypatch.setattr(runs, "carry", lambda *_: runs.Stopped(signal.SIGTERM))
    study(images, out, "--budget", "1h")
    kept = json.loads((out / "study.json").read_text())
    assert (kept["settings"]["budget"], kept["plan"]["steps"]) == ("1h", STEPS)


def test_a_part_asked_for_later_leaves_the_other_rows_in_the_figures(whole: Path, images: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "study")
    before = figures(out)
    assert study(images, out, "--only", ONLY[1]) == 0
    assert figures(out) == before


def test_one_studys_runs_have_one_pipeline_and_one_device(
    whole: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(whole, tmp_path / "study")
    capsys.readouterr()
    assert study(images, out, "--pipeline", "dali") == 2
    assert "was started with --pipeline native, not dali: continue with the same" in capsys.readouterr().err
    assert study(images, out, "--device", "auto") == 2
    assert "was started with --device cpu, not auto" in capsys.readouterr().err
    kept = json.loads((out / "study.json").read_text())
    for name in ("pipeline", "device"):
        del kept["settings"][name]  # as a version without them kept it
    (out / "study.json").write_text(json.dumps(kept))
    assert study(images, out) == 0


def test_runs_of_another_plan_are_not_mixed_with_new_ones(
    whole: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a version kept it that stopped runs within their schedule: "epochs" and "stop" beside the settings."""
    monkeypatch.setattr(runs, "step_time", slow_steps)
    out = tmp_path / "study"
    kept = json.loads((whole / "study.json").read_text())
    plan = kept.pop("plan")
    (out / f"{ONLY[0]}-seed0").mkdir(parents=True)
    (out / f"{ONLY[0]}-seed0" / "result.json").write_text((whole / f"{ONLY[0]}-seed0" / "result.json").read_text())
    earlier = {"epochs": 3, "stop": 7, "per_epoch": PER_EPOCH, "random_network": plan["random_network"]}
    before = json.dumps(kept | earlier)
    (out / "study.json").write_text(before)
    assert study(images, out) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert f"--out {out} holds runs of another version of fastvicreg" in line
    assert json.loads((out / "study.json").read_text()) == json.loads(before)


def test_a_budget_is_shared_in_equal_steps() -> None:
    assert [seconds_of(text) for text in ("90s", "20m", "1.5h")] == [90, 1200, 5400]
    assert equal_steps("10m", 500, per_step=2.0, fixed=100, runs=6) == 200
    with pytest.raises(ValueError, match=r"--budget 10m is too short for 6 runs here: give 778s or more"):
        equal_steps("10m", 500, per_step=2.0, fixed=599, runs=6)


def made(tmp_path: Path, kind: str) -> Path:
    root = tmp_path / kind
    if kind == "occupied":
        root.mkdir()
        (root / "notes.txt").write_text("mine")
    elif kind == "flat":
        for split in ("train", "val"):
            (root / split).mkdir(parents=True)
            (root / split / "one.png").write_bytes(encoded(photo(1, 36, 34), "PNG"))
    return root


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tabel4"], "unknown study 'tabel4'; did you mean 'table4'?"),
        (["--budget", "8m"], "name the study first"),
        (["table4", "--budget", "0m"], "--budget 0m: give a time above 0"),
        (["table4", "--budget", "20"], "--budget 20: give a time above 0 with its unit"),
        (["table4", "--seeds", "0"], "--seeds 0: give at least one"),
        (["table4", "--only", "moco"], "unknown row or cell 'moco'"),
        (["table4", "--width", "8"], "--width 8 is below 16"),
        (["table4", "--scale", "paper"], "--scale paper needs --data"),
        (["table4", "--scale", "paper", "--budget", "2h"], "--budget 2h: --scale paper trains 100 epochs"),
        (
            ["table4", "--scale", "paper", "--data", "D", "--width", "32"],
            "--width 32 is of --scale cpu's network: --scale paper trains ResNet-50",
        ),
        (["table4", "--data", "{flat}"], "have no label"),
        (["table4", "--data", "{images}", "--out", "{occupied}"], "holds something else than a study"),
        (["table4", "--data", "{images}", "--out", "{whole}"], "was started with --budget 1h, not 20m"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    said: str,
    images: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"images": images, "whole": whole}
    places |= {kind: made(tmp_path, kind) for kind in ("occupied", "flat")}
    capsys.readouterr()
    out = [] if "--out" in arguments or arguments[0] != "table4" else ["--out", str(tmp_path / "new")]
    assert main(["study", *(argument.format(**places) for argument in arguments), *out]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
