"""Metrics reach every tracker, and no tracker stops or slows a run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import log, tiny, train

from fastvicreg.cli import main
from fastvicreg.commands.train import options_of
from fastvicreg.errors import UserError
from fastvicreg.show import trackers
from fastvicreg.show.metrics import read, read_spread
from fastvicreg.show.trackers import TRACKERS, Opened, Point, names_of, tracker_class
from fastvicreg.show.trackers.guarded import Guarded


class Recording:
    """Keeps what it is given."""

    note = "it is open"
    points: list[Point] = []  # noqa: RUF012
    closed = 0

    def __init__(self, opened: Opened) -> None:
        Recording.points, Recording.closed = [], 0
        Recording.opened = opened

    def log(self, points: Sequence[Point]) -> None:
        Recording.points += points

    def close(self) -> None:
        Recording.closed += 1


class Offline(Recording):
    """Cannot be opened."""

    def __init__(self, opened: Opened) -> None:
        raise ConnectionError("no route to host")


class Breaking(Recording):
    """Fails at the third point."""

    def log(self, points: Sequence[Point]) -> None:
        super().log(points)
        if len(Recording.points) >= 3:
            raise RuntimeError("the server went away\nwith a long story")


class Hanging(Recording):
    """Never comes back."""

    def log(self, points: Sequence[Point]) -> None:
        threading.Event().wait()


@pytest.fixture
def _named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", f"{__name__}:{request.param.__name__}")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[request.param.__module__])


def shown(folder: Path) -> str:
    return (folder.parent / "display.txt").read_text()


@pytest.mark.parametrize("_named", [Recording], indirect=True)
@pytest.mark.usefixtures("_named")
def test_a_tracker_gets_every_row_of_the_log_and_the_settings(make_folder, tmp_path: Path) -> None:
    train(tiny(make_folder(), epochs=2, log=("wandb",)), tmp_path / "run")
    rows = read(tmp_path / "run")
    expected = [
        Point(
            "train" if "total" in row else "eval",
            row["step"],
            {k: v for k, v in row.items() if k not in ("epoch", "step")},
        )
        for row in rows
    ]
    assert len(expected) == 8
    expected += [
        Point("spread", row["step"], {k: v for k, v in row.items() if k not in ("epoch", "step")})
        for row in read_spread(tmp_path / "run")
    ]
    assert len(expected) == 11
    assert sorted(Recording.points, key=str) == sorted(expected, key=str)
    assert Recording.closed == 1
    assert Recording.opened.settings["method"]["name"] == "vicreg"
    assert shown(tmp_path / "run").count("it is open") == 1


@pytest.mark.parametrize(
    ("_named", "says"),
    [(Offline, "no route to host"), (Breaking, "the server went away"), (Hanging, "not all was sent within 0.2 s")],
    indirect=["_named"],
)
@pytest.mark.usefixtures("_named")
def test_a_failing_tracker_is_told_of_once_and_changes_nothing_else(
    says: str, make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvicreg.show.trackers.guarded.PATIENCE", 0.2)
    data = make_folder()
    plain, tracked = tmp_path / "a" / "run", tmp_path / "b" / "run"
    for folder in (plain, tracked):
        folder.parent.mkdir()
    train(tiny(data, epochs=1), plain)
    train(tiny(data, epochs=1, log=("wandb",)), tracked)
    assert log(plain) == log(tracked)
    assert shown(tracked).count(f"--log wandb gets nothing more ({says}") == 1
    assert "long story" not in shown(tracked)


def test_a_slow_tracker_loses_points_and_takes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvicreg.show.trackers.guarded.ROWS", 10)
    monkeypatch.setattr("fastvicreg.show.trackers.guarded.PATIENCE", 0.1)
    guarded = Guarded("slow", Hanging, Opened(tmp_path))
    for step in range(100):
        guarded.log([Point("train", step, {"total": 1.0})])
    lines = guarded.complaints()
    assert sum("it is too slow, and further points are dropped" in line for line in lines) == 1
    began = time.monotonic()
    guarded.close()
    assert time.monotonic() - began < 30
    assert not [line for line in guarded.complaints() if "gets nothing more" in line]


def test_names_are_parted_at_commas_and_flags_repeat() -> None:
    assert names_of(("wandb,mlflow", "tensorboard", "wandb")) == ("wandb", "mlflow")
    for words in (
        "--log wandb mlflow",
        "--log wandb --epochs 3 --log mlflow",
        "--log=wandb --log=mlflow",
        "--log wandb,mlflow",
    ):
        options = options_of(["--preset", "demo", *words.split()])
        assert names_of(options.settings.run.log) == ("wandb", "mlflow")
    with pytest.raises(UserError, match=r"--log: unknown tracker 'wand'; did you mean 'wandb'"):
        replace(tiny(Path("x")).run, log=("wand",)).check()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line_before_the_first_step(
    name: str, make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"fastvicreg.show.trackers.{name}", raising=False)
    options = "--preset demo --width 16 --expander 16 16 --batch-size 8 --epochs 1 --image-size 16 --device cpu"
    arguments = [*options.split(), "--data", str(make_folder()), "--out", str(tmp_path / "run"), "--log", name]
    assert main(["train", *arguments]) == 2
    assert f"--log {name} needs {name}: pip install 'fastvicreg[{name}]'" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_importing_the_registry_imports_no_tracker() -> None:
    assert set(TRACKERS) == {"tensorboard", "wandb", "mlflow"}
    assert not hasattr(trackers, "SummaryWriter")
    assert tracker_class("tensorboard").__name__ == "TensorBoard"


@pytest.mark.slow
def test_w_and_b_offline_holds_every_row_and_resumes_under_one_identity(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'fastvicreg[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny(make_folder(), log=("wandb",))
    train(replace(config, run=replace(config.run, steps=2)), tmp_path / "run")
    identity = (tmp_path / "run" / ".wandb-id").read_text().strip()
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / ".wandb-id").read_text().strip() == identity
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert files
    rows: list[dict[str, Any]] = read(tmp_path / "run")
    wanted = [repr(row["total"] if "total" in row else row["knn"]).encode() for row in rows]
    until = time.monotonic() + 60
    held = b""
    while not all(value in held for value in wanted) and time.monotonic() < until:
        time.sleep(0.1)  # W&B's own process writes the last of it in its own time
        held = b"".join(file.read_bytes() for file in files)
    assert [value for value in wanted if value not in held] == []
    assert b"train/total" in held
    assert b"eval/knn" in held
    assert "gets nothing more" not in shown(tmp_path / "run")


def test_mlflow_s_files_hold_every_row_and_resume_under_one_identity(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'fastvicreg[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = tiny(make_folder(), log=("mlflow",))
    train(replace(config, run=replace(config.run, steps=2)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("fastvicreg")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["method.name"] == "vicreg"
    history = {item.step: item.value for item in client.get_metric_history(found.info.run_id, "train/total")}
    assert history == {row["step"]: row["total"] for row in read(tmp_path / "run") if "total" in row}
    assert "gets nothing more" not in shown(tmp_path / "run")
    assert "MLFLOW_TRACKING_URI is not set, its files are in" in shown(tmp_path / "run")
