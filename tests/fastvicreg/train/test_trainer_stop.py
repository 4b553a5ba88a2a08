"""Signals, a full disk and a lost console cost a run nothing: resumed, it equals the uninterrupted one."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from runs import log, tiny, train

from fastvicreg.config import TrainConfig
from fastvicreg.config_file import to_json
from fastvicreg.errors import UserError
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import Recorder
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.signals import stop_signals
from fastvicreg.train.trainer import Trainer


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """A tests' runner that was started by nohup ignores SIGHUP, and its children do; here it has its usual meaning."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(config: TrainConfig, out: Path, *before: str) -> subprocess.Popen[bytes]:
    """A run of its own process, in its own session; ``before`` goes in front of its command."""
    (out.parent / "config.json").write_text(to_json(config))
    command = [
        sys.executable,
        "-m",
        "fastvicreg",
        "train",
        "--config",
        str(out.parent / "config.json"),
        "--out",
        str(out),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen([*before, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def await_step(process: subprocess.Popen[bytes], out: Path) -> None:
    """Return when the run has a checkpoint."""
    deadline = time.monotonic() + 120
    while not checkpoints.listed(out / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.005)
        assert process.poll() is None or checkpoints.listed(out / "checkpoints")


STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGKILL]


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_loses_nothing(uninterrupted: tuple[Path, Path], tmp_path: Path, number: signal.Signals) -> None:
    data, whole = uninterrupted
    out = tmp_path / "run"
    process = start(tiny(data), out)
    await_step(process, out)
    process.send_signal(number)
    code = process.wait(timeout=60)
    # 0 also where it was done before the signal came.
    assert code in (0, {signal.SIGKILL: -number, signal.SIGINT: 130, signal.SIGHUP: 129}.get(number, 0))
    train(tiny(data), out, resume=True)
    assert log(out) == log(whole)


@pytest.mark.slow
def test_nohup_keeps_a_lost_terminal_from_ending_the_run(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    out = tmp_path / "run"
    process = start(tiny(data), out, "nohup")
    await_step(process, out)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0
    assert log(out) == log(whole)


def test_only_a_second_urgent_signal_ends_at_once() -> None:
    with stop_signals() as received:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert received[0] == signal.SIGHUP


def test_a_disk_that_fills_between_checkpoints_costs_no_result(
    uninterrupted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = uninterrupted
    config = tiny(data, log_every=1, checkpoint_every=2)
    write = Recorder.evaluation

    def full(recorder: Recorder, step: int, epoch: int, values: dict[str, float]) -> dict[str, Any]:
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 0, "st')  # what of the row still went onto the disk
        monkeypatch.setattr("fastvicreg.show.metrics.json.dumps", refused)
        return write(recorder, step, epoch, values)

    def refused(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Recorder, "evaluation", full)
    with pytest.raises(UserError, match="No space left on device"):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    assert checkpoints.listed(tmp_path / "run" / "checkpoints")[-1].name == "step-00000002"
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(whole)


def test_a_console_that_is_lost_does_not_end_the_run(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    class WithoutReader(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for kind in (Gone, WithoutReader):
        out = tmp_path / kind.__name__
        Trainer(tiny(data), out, resume=False, display=Display(Console(file=kind()))).train()
        assert log(out) == log(whole)
