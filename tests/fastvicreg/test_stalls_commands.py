"""eval, convert and verify end where a read never returns, as training does: with the stage and the thread's place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvicreg.errors import UserError
from fastvicreg.stalls import watching

STUCK = """
import os, time
opened, calls = os.open, 0
def stuck(path, *args, **options):
    global calls
    if str(path).endswith("007.jpg") and "train" in str(path):
        calls += 1
        if calls > int(os.environ["STUCK_AFTER"]):
            time.sleep(3600)
    return opened(path, *args, **options)
os.open = stuck
listed = os.scandir
def scandir(path="."):
    if "STUCK_FOLDER" in os.environ and str(path).endswith("train"):
        time.sleep(3600)
    return listed(path)
os.scandir = scandir
"""
"""A file whose disk has died: what opens it waits for ever, and no signal that Python handles ends that."""
THREADS = (
    r"the threads that read and decode \(fastvicreg-{0}\) gave nothing for 1 s: fastvicreg-{0}_\d in .*source\.py:\d+"
)


@pytest.fixture
def call(tmp_path: Path, make_folder: Callable[..., Path]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command over 24 images, the eighth of which cannot be opened a second time, or at all."""
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    make_folder(train=24, val=6)

    def run(*command: str, after: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "STUCK_AFTER": str(after), **more}
        words = [sys.executable, "-m", "fastvicreg", *command]
        return subprocess.run(
            words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.mark.slow
def test_verify_and_convert_name_the_thread_that_is_stuck(
    call: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    found = call("verify", "data/train", "--stall-timeout", "1")
    assert found.returncode == 2
    assert re.search(THREADS.format("verify"), found.stderr), found.stderr
    found = call("convert", "data/train", "x.beton", "--stall-timeout", "1")
    assert found.returncode == 2
    assert re.search(THREADS.format("convert"), found.stderr), found.stderr
    assert not (tmp_path / "x.beton").exists()
    found = call("convert", "data/train", "x.beton", "--stall-timeout", "60", after=1000)  # the disk is there again
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "x.beton").exists()


@pytest.mark.slow
def test_eval_names_the_file_and_the_thread_that_is_stuck(
    call: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    small = ("--preset", "demo", "--image-size", "32", "--batch-size", "8", "--width", "16", "--expander", "16")
    made = call("train", *small, "--data", "data", "--epochs", "1", "--eval-every", "0", "--out", "run", after=1000)
    assert made.returncode == 0, made.stderr
    found = call("eval", "knn", "run", "--no-cache", "--stall-timeout", "1", after=0)
    assert found.returncode == 2
    assert re.search(
        r"the native pipeline gave nothing for 1 s: class1/007\.jpg; fastvicreg-native_\d in", found.stderr
    )
    assert "source.py:" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [("verify", "data/train"), ("convert", "data/train", "x.beton")])
def test_a_folder_that_cannot_be_listed_ends_the_command_from_outside(
    call: Callable[..., subprocess.CompletedProcess[str]], command: tuple[str, ...]
) -> None:
    found = call(*command, "--stall-timeout", "0.2", STUCK_FOLDER="1")
    assert found.returncode == 2
    line = r"fastvicreg: opening the data: nothing for 6 s, in \w+ \(\w+\.py:\d+\), in scandir .* The process ends\."
    assert re.search(line, found.stderr), found.stderr


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(UserError, match=r"--stall-timeout (-1\.0|nan|inf): give seconds, or 0 for no limit\."):
        watching(seconds)
