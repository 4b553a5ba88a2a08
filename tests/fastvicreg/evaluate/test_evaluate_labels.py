"""An accuracy is printed only where the labels give it a meaning; else one line says why, and training goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from images import encoded, photo

from fastvicreg.cli import main
from fastvicreg.evaluate.labels import mismatch, obstacle, too_few
from fastvicreg.pipelines import open_source
from fastvicreg.pretrained import load_encoder
from fastvicreg.show.metrics import read
from fastvicreg.train import checkpoint as checkpoints

TINY = "--arch resnet18 --width 16 --stem 3x3s2 --expander 16 16 --image-size 16 --recipe small --device cpu"
QUICK = [*TINY.split(), *["--workers", "1", "--epochs", "2", "--batch-size", "8", "--warmup-share", "0.1"]]


def split(root: Path, **images: int) -> Path:
    """A folder of ``images`` a class folder; the class "flat" has no folder."""
    for name, count in images.items():
        for number in range(count):
            path = root / f"{number}.jpg" if name == "flat" else root / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(number, 24, 24)))
    return root


@pytest.mark.parametrize(
    ("bank", "queries", "says"),
    [
        ({"cat": 3, "dog": 3}, {"cat": 1, "dog": 1}, None),
        ({"ant": 3, "bee": 3, "cat": 3}, {"ant": 1, "bee": 1}, None),
        ({"cat": 3, "dog": 3}, {"flat": 2}, "2 of the 2 images of VAL have no label"),
        ({"flat": 4}, {"cat": 1, "dog": 1}, "4 of the 4 images of TRAIN have no label"),
        ({"cat": 3, "dog": 3}, None, "TRAIN has no validation images"),
        ({"cat": 3}, {"cat": 2}, "all images of TRAIN are of one class, 'cat'"),
        ({"cat": 3, "dog": 3}, {"cat": 2}, "all images of VAL are of one class, 'cat'"),
        ({"cat": 3, "dog": 3}, {"cat": 1, "dogs": 1}, "'dogs' only in VAL; 'dog' only in TRAIN"),
        ({"ant": 3, "bee": 3, "cat": 3}, {"bee": 1, "cat": 1}, "'ant' only in TRAIN"),
    ],
)
def test_labels_that_give_no_accuracy_are_named(
    bank: dict[str, int], queries: dict[str, int] | None, says: str | None, tmp_path: Path
) -> None:
    train = open_source(split(tmp_path / "train", **bank))
    validation = None if queries is None else open_source(split(tmp_path / "val", **queries))
    reason = obstacle(train, validation, bank_where="TRAIN", queries_where="VAL")
    assert (reason is None) == (says is None)
    assert (says or "") in (reason or "")


def test_a_mismatch_names_a_few_classes_and_counts_the_rest() -> None:
    line = mismatch(("z",), tuple("abcdef"), "TRAIN", "VAL")
    assert line is not None
    assert "'a', 'b', 'c' and 3 more only in VAL; 'z' only in TRAIN" in line
    swapped = mismatch(("a", "b"), ("b", "a"), "TRAIN", "VAL")
    assert swapped is not None
    assert "in their order" in swapped


def test_the_smallest_class_bounds_the_labels_a_class(tmp_path: Path) -> None:
    source = open_source(split(tmp_path / "train", cat=5, dog=2))
    assert too_few(source, 2) is None
    assert "class 'dog' has 2 training images" in (too_few(source, 3) or "")


@pytest.mark.slow
def test_eval_takes_other_data_and_checkpoints_and_refuses_what_means_nothing(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = make_folder(), tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), *QUICK, "--eval-every", "0"]) == 0
    older, newer = checkpoints.listed(run / "checkpoints")

    def answer(*arguments: str, method: str = "knn") -> tuple[int, str]:
        capsys.readouterr()
        code = main(["eval", method, str(run), "--device", "cpu", "--workers", "1", *arguments])
        shown = capsys.readouterr()
        return code, (shown.out + shown.err).strip()

    for spelled in ("3", "step-00000003", str(older)):
        code, text = answer("--checkpoint", spelled)
        assert (code, f"({older})" in text) == (0, True), text
    assert f"({newer})" in answer()[1]
    other = split(tmp_path / "other", class0=2, class1=3)
    assert "of 5 images" in answer("--val-data", str(other))[1]

    (tmp_path / "labels.txt").write_text("class1\nclass0\nclass1\n")
    known = ("--val-data", str(split(tmp_path / "unsorted", unsorted=3)), "--val-labels", str(tmp_path / "labels.txt"))
    text = answer(*known, "--json", str(tmp_path / "figures.json"))[1]
    assert "of 3 images" in text
    assert "replaces the labels that the images have already, by folder or as stored: 3 of 3 differ" in text
    assert json.loads((tmp_path / "figures.json").read_text())["rows"][0]["val_labels"] == known[3]

    flat, renamed = split(tmp_path / "flat", flat=3), split(tmp_path / "renamed", class0=1, other=1)
    for arguments, says in (
        (("--val-data", str(flat)), "3 of the 3 images"),
        (("--val-data", str(other), *known[2:]), "has 3 labels in lines of their own for 5 images"),
        (("--val-data", str(renamed)), "'other' only in"),
        (("--val-data", str(split(tmp_path / "one", class0=2))), "one class, 'class0'"),
        (("--data", str(other)), "no validation images"),
        (("--checkpoint", "4"), "it has step-00000003, step-00000006"),
        (("--checkpoint", str(tmp_path / older.name)), "no such checkpoint"),
    ):
        code, text = answer(*arguments)
        assert (code, text.count("\n")) == (2, 0), text
        assert says in text
    assert "class 'class0' has 8 training images" in answer("--labels-per-class", "9", method="linear")[1]
    assert answer("--labels-per-class", "8", method="linear")[0] == 0

    (older / "model.safetensors").write_bytes(b"short")
    assert "is damaged" in answer("--checkpoint", "3")[1]
    assert answer()[0] == 0


def test_a_run_s_own_file_says_which_folder_to_give_and_one_alone_needs_data(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "--data", str(make_folder(val=0)), "--out", str(run), *QUICK, "--steps", "1"]) == 0
    (step,) = checkpoints.listed(run / "checkpoints")
    alone = tmp_path / "model.safetensors"
    shutil.copy(step / "model.safetensors", alone)
    for arguments, says in (
        (["eval", "knn", str(step / "model.safetensors")], f"fastvicreg eval knn {run} --checkpoint {step.name}"),
        (["eval", "knn", str(step)], f"fastvicreg eval knn {run} --checkpoint {step.name}"),
        (["eval", "knn", str(alone)], "does not say which images it was trained on: give --data FOLDER"),
        (["eval", "knn", str(tmp_path / "data")], "has no config.json"),
        (["train", "--config", str(alone)], "holds weights, not settings"),
        (["train", "--resume", "--out", str(alone)], "is a file, not a run"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        line = capsys.readouterr().err.strip()
        assert says in line
        assert "\n" not in line


def test_a_loaded_encoder_is_in_evaluation_mode(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "--data", str(make_folder(val=0)), "--out", str(run), *QUICK, "--steps", "1"]) == 0
    encoder = load_encoder(run)
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize(
    ("validation", "says"),
    [
        ({"flat": 4}, "4 of the 4 images"),
        ({"class0": 2, "other": 2}, "'other' only in"),
        (None, "no validation images"),
    ],
)
def test_training_goes_on_without_knn_and_says_why_once(
    validation: dict[str, int] | None,
    says: str,
    make_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, run = make_folder(val=0, train=16), tmp_path / "run"
    other = [] if validation is None else ["--val-data", str(split(tmp_path / "validation", **validation))]
    assert main(["train", "--data", str(data), *other, "--out", str(run), *QUICK, "--eval-every", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("no kNN while training: ") == 1
    assert says in shown
    evaluations = [row for row in read(run) if "rankme" in row]
    assert len(evaluations) == 2
    assert not any("knn" in row for row in evaluations)


def test_an_evaluation_that_fails_alike_each_time_is_told_once(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(val=12)
    for path in (data / "val").rglob("*.jpg"):
        path.write_bytes(b"broken")
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *QUICK, "--eval-every", "1"]) == 0
    assert capsys.readouterr().out.count("no evaluation") == 1
