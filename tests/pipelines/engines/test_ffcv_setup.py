"""FFCV's installation and its place in the program: found or missed in plain words, and a process that always ends."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvicreg.cli import main
from fastvicreg.doctor import examine
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe

needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed: make ffcv")
MODEL = ["--arch", "resnet18", "--width", "16", "--expander", "32", "32", "--image-size", "32"]
SMALL_RUN = [*MODEL, "--batch-size", "6", "--epochs", "2", "--steps", "3", "--seed", "1", "--device", "cpu"]


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(train=12, val=0)


@pytest.fixture
def beton(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "images.beton"
    convert_dataset(folder, target)
    return target


def build_ffcv(beton: Path, **options: str) -> None:
    source = open_source(beton)
    plan = train_plan(len(source), seed=3, recipe=named_recipe("official"), image_size=16)
    build_engine("ffcv", source, plan, batch_size=4, **options)  # type: ignore[arg-type]


def test_a_folder_ends_in_the_command_that_converts_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data", str(folder), "--pipeline", "ffcv", "--out", str(tmp_path / "run"), *SMALL_RUN]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith(f"fastvicreg convert {folder} {folder}.beton --format beton")


def test_without_ffcv_one_line_says_what_to_do(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastvicreg.pipelines.engines.ffcv_loader", None)
    with pytest.raises(UserError, match=r"needs FFCV.*doctor") as refused:
        build_ffcv(beton)
    assert "\n" not in str(refused.value)


def test_another_resampler_is_refused(beton: Path) -> None:
    with pytest.raises(UserError, match="--kernel resample=torch"):
        build_ffcv(beton, resample="torch")


@needs_ffcv
def test_a_training_run_is_the_same_from_either_engine(beton: Path, tmp_path: Path) -> None:
    totals = []
    for name in ("ffcv", "native"):
        arguments = ["train", "--data", str(beton), "--pipeline", name, "--out", str(tmp_path / name), *SMALL_RUN]
        assert main(arguments) == 0
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        totals.append([row["total"] for row in rows if "total" in row])
    assert len(totals[0]) == 3
    assert totals[0] == totals[1]


@pytest.mark.slow
@needs_ffcv
def test_doctor_really_delivers_a_batch() -> None:
    finding = next(finding for finding in examine() if (finding.kind, finding.name) == ("pipeline", "ffcv"))
    assert finding.works, finding.seen
    assert finding.seen == "delivered (4, 2, 32, 32, 3) uint8 on cpu"


@pytest.mark.slow
def test_doctor_names_the_commands_where_ffcv_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastvicreg.pipelines.engines.ffcv_loader", None)
    finding = next(finding for finding in examine() if (finding.kind, finding.name) == ("pipeline", "ffcv"))
    assert not finding.works
    assert not finding.needed
    assert "apt-get install" in finding.remedy
    assert "conda-forge" in finding.remedy


@pytest.mark.parametrize(("ci", "arguments", "code"), [("", [], 0), ("true", [], 1), ("", ["--required"], 1)])
def test_an_installation_that_fails_says_why_in_one_line(
    tmp_path: Path, ci: str, arguments: list[str], code: int
) -> None:
    for tool in ("dirname", "mktemp", "rm", "bash"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    script = Path(__file__).resolve().parents[3] / "pipelines" / "install_ffcv.sh"
    environment = {"PATH": str(tmp_path), "CI": ci}  # no compiler, no apt-get
    command = ["bash", str(script), "/bin/false", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "native takes its place" in line
    assert "headers of libturbojpeg and OpenCV" in line


PROCESS = """
import os, sys, torch
from fastvicreg.contracts import Cursor
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
torch.set_num_threads(2)
source = open_source(sys.argv[1])
plan = train_plan(len(source), seed=3, recipe=named_recipe("official"), image_size=16)
engine = build_engine("ffcv", source, plan, batch_size=4, workers=2)
batches = engine.batches(Cursor(0, 0))
next(batches)
assert torch.get_num_threads() == 2, torch.get_num_threads()
child = os.fork()
if child == 0:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
ENDING
"""


@pytest.mark.slow
@needs_ffcv
@pytest.mark.parametrize(("ending", "code"), [("engine.close()", 0), ("raise SystemExit(3)  # in an open epoch", 3)])
def test_the_process_ends_also_after_a_fork_and_keeps_torchs_threads(beton: Path, ending: str, code: int) -> None:
    script = PROCESS.replace("ENDING", ending)
    done = subprocess.run([sys.executable, "-c", script, str(beton)], timeout=300, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
