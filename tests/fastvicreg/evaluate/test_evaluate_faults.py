"""Images that an evaluation cannot read: counted, judged by what stands for them, refused beyond a budget."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvicreg.cli import main

Answer = Callable[..., tuple[int, str]]
QUIET = ("--device", "cpu", "--workers", "1", "--no-cache")


@pytest.fixture
def damaged(uninterrupted: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """(data, run): of the validation images all of class1 cannot be read, of the training images one."""
    data = tmp_path / "data"
    shutil.copytree(uninterrupted[0], data)
    for path in (*(data / "val" / "class1").iterdir(), data / "train" / "class0" / "0.jpg"):
        path.write_bytes(b"no image")
    return data, uninterrupted[1]


def test_an_image_in_place_of_another_is_judged_by_its_own_label(
    damaged: tuple[Path, Path], tmp_path: Path, answer: Answer
) -> None:
    data, run = damaged
    shutil.rmtree(data / "train")
    shutil.copytree(data / "val", data / "train")  # each image that can be read has itself in the bank
    code, text = answer("knn", run, "--data", data, "--k", "1", *QUIET, "--report", tmp_path)
    assert code == 0, text
    assert "images could not be read; a neighbour stands for each" in text
    (row,) = json.loads((tmp_path / "knn.json").read_text())["rows"]
    assert (row["accuracy"], row["queries"], row["faults"]) == (100, 9, 6)


def test_what_may_be_unreadable_is_asked_for_by_the_options_that_the_refusal_names(
    damaged: tuple[Path, Path], tmp_path: Path, answer: Answer
) -> None:
    data, run = damaged
    asked = ("knn", run, "--data", data, "--k", "1", *QUIET, "--report", tmp_path)
    code, line = answer(*asked, "--fault-count", "2")
    assert code == 2
    assert "allow more with --fault-count and --fault-share" in line
    assert answer(*asked, "--fault-count", "3")[0] == 0
    assert answer(*asked, "--fault-count", "0", "--fault-share", ".5")[0] == 0
    code, line = answer(*asked, "--fault-count", "-1")
    assert (code, "--fault-count -1 is too small" in line) == (2, True)


def test_inspect_is_asked_for_it_alike(
    damaged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = damaged
    few = ("--views", "2", "--device", "cpu", "--workers", "1", "--out", str(tmp_path / "page.html"))
    asked = ("inspect", str(run), "--data", str(data), *few)
    assert main([*asked, "--fault-count", "2"]) == 2
    assert "allow more with --fault-count and --fault-share" in capsys.readouterr().err
    assert main([*asked, "--fault-count", "3"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 of the images could not be read; a neighbour stands for each." in shown
    assert (tmp_path / "page.html").exists()


@pytest.mark.parametrize("protocol", [("linear", "--epochs", "1"), ("finetune", "--epochs", "1")])
def test_training_images_that_cannot_be_read_are_told(
    protocol: tuple[str, ...], damaged: tuple[Path, Path], tmp_path: Path, answer: Answer
) -> None:
    data, run = damaged
    code, text = answer(protocol[0], run, "--data", data, *protocol[1:], *QUIET, "--report", tmp_path)
    assert code == 0, text
    assert "1 training images could not be read; a neighbour stood for each." in text
