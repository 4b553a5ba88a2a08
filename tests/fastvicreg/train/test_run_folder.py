"""One process at a time writes into a run's folder, and a run that lost its disk goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from images import photo

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.train.run_folder import claim, save_config, save_preset

HOLD = """
import sys, time
from pathlib import Path
from fastvicreg.config import TrainConfig
from fastvicreg.train.run_folder import claim
lock = claim(Path(sys.argv[1]), TrainConfig(), resume=True)
print("held", flush=True)
time.sleep(120)
"""


def test_a_second_run_is_refused_by_name_and_a_kill_lets_go(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for resume in (False, True):
            with pytest.raises(UserError, match=rf"being written by process {other.pid} on .+: .*--out"):
                claim(tmp_path, TrainConfig(), resume=resume)
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate(timeout=60)
    claim(tmp_path, TrainConfig(), resume=True).release()


def test_a_refusal_lets_go_of_the_folder(tmp_path: Path) -> None:
    claim(tmp_path, TrainConfig(), resume=False).release()
    save_config(tmp_path, TrainConfig())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="already holds a run"):
        claim(tmp_path, TrainConfig(), resume=False)
    claim(tmp_path, TrainConfig(), resume=True).release()


def test_a_run_that_a_mistake_ended_before_its_first_step_leaves_the_folder_free(tmp_path: Path) -> None:
    arguments = ["train", "--preset", "demo", "--epochs", "1", "--steps", "1", "--batch-size", "8", "--eval-every", "0"]
    arguments += ["--out", str(tmp_path / "run")]
    refused = ["--method", "simclr", "--recipe", "multicrop", "--small-size", "16"]  # which its first batch tells
    assert main([*arguments, *refused]) == 2
    assert main([*arguments, "--recipe", "small"]) == 0
    assert main([*arguments, "--recipe", "small"]) == 2
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert main([*arguments, "--recipe", "small"]) == 2  # a checkpoint is left


def test_a_run_among_the_class_folders_is_refused_as_it_would_be_a_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for image in range(2):
                photo(number + 2 * image, 40, 40).save(tmp_path / split / name / f"{image}.png")
    arguments = ["train", "--data", str(tmp_path), "--preset", "demo", "--batch-size", "4", "--total-steps", "1"]
    for inside in ("train", "train/aaa", "val/runs/aaa"):
        assert main([*arguments, "--out", str(tmp_path / inside)]) == 2
        assert "whose folders are the images' classes" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "val").iterdir()) == ["ant", "bee"]
    assert main([*arguments, "--eval-every", "0", "--out", str(tmp_path / "runs")]) == 0  # beside the splits


def test_a_run_beside_shards_is_nobody_s_class(make_folder, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    assert main(["convert", str(make_folder(train=4, val=0)), str(shards), "--format", "shards"]) == 0
    settings = ["--preset", "demo", "--batch-size", "4", "--total-steps", "1", "--out", str(shards / "run")]
    assert main(["train", "--data", str(shards), *settings]) == 0


def test_settings_left_in_a_free_folder_are_not_the_next_run_s(tmp_path: Path) -> None:
    save_config(tmp_path, TrainConfig())
    save_preset(tmp_path, "demo", ())
    claim(tmp_path, TrainConfig(), resume=False).release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoints"]


def test_a_file_system_without_locks_is_told_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    lock = claim(tmp_path, TrainConfig(), resume=False)
    assert "No locks available" in lock.missing
    assert (tmp_path / "checkpoints").is_dir()
    save_config(tmp_path, TrainConfig())
    with pytest.raises(UserError, match="already holds a run"):  # another process may be at its start
        claim(tmp_path, TrainConfig(), resume=False)
    lock.release()
