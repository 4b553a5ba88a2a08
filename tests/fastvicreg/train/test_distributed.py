"""Several processes train what one would: same batches, same loss, same weights, whatever their number."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from images import encoded, photo
from safetensors.torch import load_file

from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.config_file import to_json
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.show.metrics import read

SECONDS = 120
SLOW_DECODING = """
import os, time
if os.environ.get("RANK") == "1":
    import simplejpeg
    decode = simplejpeg.decode_jpeg
    def late(*args, **options):
        time.sleep(0.1)
        return decode(*args, **options)
    simplejpeg.decode_jpeg = late
"""


def config_file(folder: Path, **run: object) -> Path:
    """8 batches of 8 over 32 training images; 7 validation images, which no two processes share evenly."""
    for split, count in (("train", 32), ("val", 7)):
        for number in range(count):
            path = folder / "data" / split / f"class{number % 3}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(number, 30 + number, 40)))
    settings = {"epochs": 2, "batch_size": 8, "device": "cpu", "log_every": 1, "eval_every": 1} | run
    config = TrainConfig(
        data=DataConfig(data=str(folder / "data"), image_size=16, recipe="small", workers=1, prefetch=1),
        encoder=ResNetConfig(arch="resnet18", width=16, stem="3x3s2"),
        method=VICRegConfig(expander=(16, 24)),
        optim=OptimConfig(base_lr=8.0, warmup_share=0.1),
        run=RunConfig(**settings),  # type: ignore[arg-type]
    )
    (folder / "config.json").write_text(to_json(config))
    return folder / "config.json"


def launch(
    processes: int, *arguments: str, command: tuple[str, ...] = ("train",), options: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *options]
    line = [sys.executable, *(torchrun if processes > 1 else []), "-m", "fastvicreg", *command, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        # torchrun's processes have sessions of their own: they outlive it, and hold the pipe that is read here.
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pytest.fail(f"still running after {SECONDS} s: {process.communicate(timeout=10)[0]}")


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` has started, and those that these have."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(lower for child in children for lower in descendants(child))]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config, run) of one process."""
    folder = tmp_path_factory.mktemp("one")
    config = config_file(folder)
    process = launch(1, "--config", str(config), "--out", str(folder / "run"))
    output = finish(process)
    assert process.returncode == 0, output
    return config, folder / "run"


def assert_same(found: Path, wanted: Path, *, noise: float = 0.0) -> None:
    """The same rows and weights but for rounding, which training amplifies; ``*_std`` is each process's own.

    ``noise`` is what a parameter without gradient, as a bias before a batch norm, gathers of rounding.
    """
    rows, expected = read(found), read(wanted)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name in {"total", "invariance", "variance", "covariance", "lr", "knn", "rankme"} & set(other):
            assert row[name] == pytest.approx(other[name], rel=1e-3), (name, row["step"])
    weights, reference = (
        load_file(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors") for run in (found, wanted)
    )
    for name, value in reference.items():
        difference = (weights[name].double() - value.double()).norm()
        assert difference <= 1e-3 * value.double().norm() + noise, name


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "options"), [(2, ()), (4, ()), (2, ("--recompute-stages", "1", "3"))])
def test_as_one_process(one: tuple[Path, Path], tmp_path: Path, processes: int, options: tuple[str, ...]) -> None:
    config, reference = one
    process = launch(processes, "--config", str(config), *options, "--out", str(tmp_path / "run"))
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("done: 8 steps") == 1, "one process speaks"
    assert_same(tmp_path / "run", reference)


@pytest.mark.slow
def test_weight_decay_clipping_and_stochastic_depth_are_those_of_one_process(tmp_path: Path) -> None:
    """A transformer, whose branches are not 0 at the start; clipped gradients are those of all processes."""
    config = config_file(tmp_path, eval_every=0)
    options = ("--arch", "vit_tiny", "--patch", "8", "--grid", "2", "--depth", "3", "--drop-path", ".5")
    options += ("--weight-decay", ".001", "--weight-decay-end", ".1", "--clip", ".05", "--clip-by", "parameter")
    runs = [tmp_path / "one", tmp_path / "two", tmp_path / "kept"]
    for processes, run, given in ((1, runs[0], ()), (2, runs[1], ()), (1, runs[2], ("--drop-path", "0"))):
        process = launch(processes, "--config", str(config), *options, *given, "--out", str(run))
        output = finish(process)
        assert process.returncode == 0, output
    assert_same(runs[1], runs[0], noise=1e-6)
    one, two, kept = map(read, runs)
    for row, other in zip(two, one, strict=True):
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert row["grad_norm"] > 0.05
        assert row["weight_decay"] == other["weight_decay"]
    assert kept[0]["total"] != pytest.approx(one[0]["total"], rel=1e-3)


@pytest.mark.slow
def test_stopped_as_two_and_resumed_as_one(one: tuple[Path, Path], tmp_path: Path) -> None:
    config, reference = one
    run = tmp_path / "run"
    settings = json.loads(config.read_text())
    process = launch(2, "--config", str(config), "--out", str(run), "--steps", "3")
    output = finish(process)
    assert process.returncode == 0, output
    assert len([row for row in read(run) if "total" in row]) == 3
    process = launch(1, "--resume", "--out", str(run), "--steps", "0")
    output = finish(process)
    assert process.returncode == 0, output
    assert_same(run, reference)
    assert settings["run"]["batch_size"] == 8


@pytest.mark.slow
def test_a_signal_stops_all_at_the_same_step(tmp_path: Path) -> None:
    config = config_file(tmp_path, epochs=500, eval_every=0)
    run = tmp_path / "run"
    process = launch(2, "--config", str(config), "--out", str(run))
    deadline = time.monotonic() + SECONDS
    while not (run / "metrics.jsonl").exists() or not read(run):
        assert time.monotonic() < deadline, "no step was made"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    steps = read(run)[-1]["step"]
    assert steps < 2000
    assert f"stopped at step {steps}" in output
    assert sorted((run / "checkpoints").iterdir())[-1].name == f"step-{steps:08d}"


@pytest.mark.slow
def test_a_killed_process_is_started_again_by_torchrun_and_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    config = config_file(tmp_path, epochs=6, eval_every=0, checkpoint_every=1)
    whole, run = tmp_path / "whole", tmp_path / "run"
    output = finish(launch(2, "--config", str(config), "--out", str(whole)))
    assert (whole / "metrics.jsonl").exists(), output
    process = launch(2, "--resume", "--config", str(config), "--out", str(run), options=("--max-restarts", "2"))
    deadline = time.monotonic() + SECONDS
    while not (run / "checkpoints").exists() or not any((run / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 0, output
    assert "resumed" in output
    ended = [sorted((folder / "checkpoints").iterdir())[-1] / "model.safetensors" for folder in (whole, run)]
    first, second = (load_file(path) for path in ended)
    assert all(first[name].equal(second[name]) for name in first)


def worker_of(torchrun: int) -> int:
    """The last of the processes that torchrun has started."""
    return int(Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()[-1])


@pytest.mark.slow
def test_the_process_whose_images_come_late_is_named(
    one: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_DECODING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    process = launch(2, "--config", str(one[0]), "--out", str(tmp_path / "run"), "--eval-every", "0")
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("process 1 waited for its images") == 2, output  # of two epochs


@pytest.mark.slow
def test_the_swap_test_leaves_out_communication(one: tuple[Path, Path], tmp_path: Path) -> None:
    config, _ = one
    figures = ("--repeats", "1", "--window", "3", "--json", str(tmp_path / "swap.json"))
    process = launch(2, "--config", str(config), *figures, command=("bench", "swap"))
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("bottleneck:") == 1, "one process speaks"
    rows = {row["swap"]: row for row in json.loads((tmp_path / "swap.json").read_text())["rows"]}
    assert rows["no communication"]["saves"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--resolution", "100"), ("--device", "cuda:7")], ids=str)
def test_a_mistake_in_the_options_is_told_once(options: tuple[str, ...], tmp_path: Path) -> None:
    """Before the processes meet, and before torch is imported."""
    process = launch(3, "--preset", "demo", *options, "--out", str(tmp_path / "run"))
    output = finish(process)
    assert process.returncode != 0
    assert [line.count(" ".join(options)) for line in output.splitlines() if "fastvicreg: " in line] == [1], output


@pytest.mark.slow
def test_a_mistake_in_all_is_a_line_and_no_traceback(tmp_path: Path) -> None:
    config = config_file(tmp_path, batch_size=9)
    process = launch(2, "--config", str(config), "--out", str(tmp_path / "run"))
    output = finish(process)
    assert process.returncode != 0
    assert output.count("--batch-size 9, the total batch, does not divide among 2 processes.") == 1
    assert "fastvicreg: --batch-size 9" in output  # the first process's own words
    assert "fastvicreg/train/trainer.py" not in output
