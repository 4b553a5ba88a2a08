"""No wait is without an end: what is stuck is named with its place, and the process ends without it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from images import encoded, photo
from runs import log

from fastvicreg.contracts import Cursor
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.pipelines.sources import open_source
from fastvicreg.stalls import StalledError, Watchdog, waited, whereabouts

SMALL = [
    *("--preset", "demo", "--image-size", "32", "--batch-size", "8"),
    *("--width", "16", "--expander", "16", "--eval-every", "0"),
]
"""Options of a run of three steps an epoch over ``folder``."""
STUCK_DECODER = """
import simplejpeg, sys, time
decode, calls = simplejpeg.decode_jpeg, 0
def stuck(*args, **options):
    global calls
    calls += 1
    if calls > 60 and "--resume" not in sys.argv:
        time.sleep(3600)
    return decode(*args, **options)
simplejpeg.decode_jpeg = stuck
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(24):
        path = tmp_path / "data" / f"class{number % 3}" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number, 30, 40)))
    return tmp_path / "data"


def test_a_read_that_never_ends_is_named_with_its_file_and_place(folder: Path) -> None:
    source = open_source(folder)
    plan = train_plan(len(source), seed=0, recipe=named_recipe("small"), image_size=32, epochs=1, shuffle="full")
    pipe = folder / "class1" / "07.jpg"
    pipe.unlink()
    os.mkfifo(pipe)  # opening it waits for a writer that never comes, as a read from a dead disk does
    engine = build_engine("native", source, plan, batch_size=8, workers=2, stall=0.3)
    try:
        with pytest.raises(StalledError, match=r"the native pipeline gave nothing for 0.3 s: class1/07.jpg; ") as told:
            list(engine.batches(Cursor(0, 0)))
        assert "fastvicreg-native_" in str(told.value)
        assert "source.py:" in str(told.value)
        began = time.monotonic()
        engine.close()
        assert time.monotonic() - began < 5
    finally:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


def test_work_in_order_is_given_up_with_what_came_before_it_delivered() -> None:
    freed = threading.Event()
    results = in_order(lambda i: freed.wait() if i == 3 else i, range(8), workers=2, chunk=1, name="reader", stall=0.3)
    try:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(StalledError, match=r"decode \(reader\) gave nothing for 0.3 s: reader_\d in .*<lambda>"):
            next(results)
    finally:
        freed.set()


def test_whereabouts_tell_only_of_threads_that_are_asked_for() -> None:
    freed = threading.Event()
    thread = threading.Thread(target=freed.wait, name="odd one")
    thread.start()
    try:
        assert re.fullmatch(r"odd one in \w+\.wait \(threading\.py:\d+\)", whereabouts("odd"))
        assert whereabouts("even") == ""
    finally:
        freed.set()
        thread.join()


def test_a_long_wait_is_many_short_ones_of_the_same_length_in_all() -> None:
    for seconds in (0.2, 60.0, 6000.0):
        asked: list[float] = []
        assert not waited(lambda timeout, asked=asked: bool(asked.append(timeout)), seconds)
        assert sum(asked) == pytest.approx(seconds)
        assert max(asked) <= min(5, seconds / 20)  # all that a process that was stopped has lost of its wait
    answers = iter([False, False, True])
    assert waited(lambda timeout: next(answers), 1.0)


@pytest.mark.slow
def test_a_run_that_was_stopped_for_longer_than_its_limits_goes_on(folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fastvicreg",
        "train",
        "--out",
        str(tmp_path / "run"),
        *SMALL,
        "--data",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--epochs", "60", "--stall-timeout", "1"], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=120) == 0, process.communicate()[1]
    assert [row["step"] for row in log(tmp_path / "run") if "total" in row] == list(range(1, 181))


def test_the_watchdog_barks_where_no_stage_follows_and_only_then() -> None:
    said: list[str] = []
    codes: list[int] = []
    with Watchdog(0.3, told=said.append, end=codes.append) as watch:
        for number in range(4):
            watch(f"step {number}")
            time.sleep(0.1)
        assert not said
        watch("a long stage", factor=20)
        time.sleep(0.6)
        assert not said
        watch("the last step")
        time.sleep(0.8)
    assert codes == [2]
    assert len(said) == 1
    assert said[0].startswith("the last step: nothing for 0.3 s, in test_the_watchdog_barks")
    with Watchdog(0, told=said.append, end=codes.append):
        time.sleep(0.1)
    assert len(said) == 1


@pytest.mark.slow
def test_a_run_whose_decoder_hangs_ends_with_a_checkpoint_and_goes_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STUCK_DECODER)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    options = ["--data", str(folder), *SMALL, "--epochs", "4", "--stall-timeout", "2", "--prefetch", "1"]
    command = [sys.executable, "-m", "fastvicreg", "train", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2, ran.stderr
    assert "the native pipeline gave nothing for 2 s: class" in ran.stderr
    assert f"Continue with --resume --out {tmp_path / 'run'}." in ran.stderr
    before = [row["step"] for row in log(tmp_path / "run") if "total" in row]
    assert before
    ran = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert f"resumed {tmp_path / 'run' / 'checkpoints' / f'step-{before[-1]:08d}'}" in ran.stdout
    assert [row["step"] for row in log(tmp_path / "run") if "total" in row] == list(range(1, 13))
