"""Work beside training: in its order, waited for, and its error told once."""

from __future__ import annotations

import errno
import io
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from runs import log, tiny, train
from safetensors import SafetensorError

from fastvicreg.errors import UserError
from fastvicreg.show.display import Display
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.background import Background
from fastvicreg.train.trainer import Trainer


def test_a_piece_of_work_waits_for_the_one_before_it() -> None:
    work, gate, done = Background(), threading.Event(), list[str]()
    work.start(lambda: (gate.wait(10), done.append("first")))
    work.check()  # still running: nothing to say
    assert not done
    threading.Timer(0.05, gate.set).start()
    work.start(lambda: done.append("second"))
    work.wait()
    assert done == ["first", "second"]
    work.close()


def test_an_error_is_raised_once_by_whoever_asks_next() -> None:
    work = Background()

    def failing() -> None:
        raise UserError("no room")

    work.start(failing)
    with pytest.raises(UserError, match="no room"):
        work.start(lambda: None)
    work.wait()
    work.start(failing)
    with pytest.raises(UserError, match="no room"):
        work.wait()
    work.check()
    work.close()


def test_a_spared_error_is_told_where_other_work_follows_and_raised_at_the_end() -> None:
    told: list[str] = []
    work = Background(OSError, told.append)

    def failing(error: Exception) -> None:
        raise error

    for _ in range(2):
        work.start(lambda: failing(OSError("full")))
    work.clear()
    assert told == ["full", "full"]
    work.start(lambda: failing(OSError("full")))
    with pytest.raises(OSError, match="full"):
        work.wait()
    work.start(lambda: failing(UserError("else")))
    with pytest.raises(UserError, match="else"):
        work.clear()
    work.close()
    assert told == ["full", "full"]


def test_a_checkpoint_holds_its_own_step_although_training_goes_on_while_it_is_written(
    uninterrupted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = uninterrupted
    write, began, steps = checkpoints.write, threading.Event(), threading.Event()

    def slow(folder: Path, state: Any, *, keep: int) -> Path:
        began.set()
        steps.wait(0.2)  # steps pass meanwhile
        return write(folder, state, keep=keep)

    monkeypatch.setattr(checkpoints, "write", slow)
    config = tiny(data, checkpoint_every=2)
    train(replace(config, run=replace(config.run, steps=5)), tmp_path / "run")
    monkeypatch.undo()
    assert began.is_set()
    assert [path.name for path in checkpoints.listed(tmp_path / "run" / "checkpoints")][-1] == "step-00000005"
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(whole)


@pytest.mark.parametrize("call", ["save_file", "write_text"])
def test_a_full_disk_costs_checkpoints_and_not_the_run(
    call: str, uninterrupted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = uninterrupted
    real = checkpoints.save_file if call == "save_file" else Path.write_text
    full = threading.Event()

    def refused(*given: Any) -> Any:
        path = str(given[1] if call == "save_file" else given[0])
        if not full.is_set() and ".step-" in path and not any(f"{step:08d}" in path for step in (1, 6)):
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # As safetensors tells it.
            raise SafetensorError("I/O error: No space left on device (os error 28)") if call == "save_file" else error
        return real(*given)

    holder = checkpoints if call == "save_file" else Path
    monkeypatch.setattr(holder, call, refused)
    shown = io.StringIO()
    config = tiny(data, checkpoint_every=1)
    with pytest.raises(UserError, match="cannot write the checkpoint"):  # of its last the run needs one
        Trainer(config, tmp_path / "run", resume=False, display=Display(Console(file=shown, width=400))).train()
    assert log(tmp_path / "run") == log(whole)  # all steps were made
    assert shown.getvalue().count("No space left on device") > 1
    assert "earlier checkpoints are untouched. Training goes on." in shown.getvalue()
    left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(left) == ["step-00000001", "step-00000006"]
    full.set()
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(whole)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_the_earlier_ones(
    uninterrupted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = uninterrupted
    write = checkpoints.write

    def full(folder: Path, state: Any, *, keep: int) -> Path:
        if state.progress.step > 3:
            raise UserError("cannot write the checkpoint: no space left")
        return write(folder, state, keep=keep)

    monkeypatch.setattr(checkpoints, "write", full)
    with pytest.raises(UserError, match="no space left"):
        train(tiny(data), tmp_path / "run")
    monkeypatch.undo()
    assert checkpoints.listed(tmp_path / "run" / "checkpoints")[-1].name == "step-00000003"
    train(tiny(data), tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(whole)
