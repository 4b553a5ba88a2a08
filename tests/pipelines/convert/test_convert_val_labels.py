"""``convert --val-labels``: flat validation images get their classes, under the training split's numbers."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo

from fastvicreg.cli import main
from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.datasets import open_data
from fastvicreg.pipelines import open_source

CLASSES = ("n01", "n02", "n03")
LABELS = [2, 0, 1, 0]
NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
KIT = {1: "n03", 2: "n01", 3: "n02", 4: "n00_a_group"}
"""ILSVRC2012_ID to WordNet id: ImageNet's own order is another than that of names."""


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """train/ in class folders and val/ flat."""
    root = tmp_path / "ILSVRC"
    for number, name in enumerate(CLASSES):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "0.JPEG").write_bytes(encoded(photo(number, 16, 16)))
    (root / "val").mkdir()
    for number, name in enumerate(NAMES):
        (root / "val" / name).write_bytes(encoded(photo(10 + number, 16, 16)))
    return root


def ground_truth(folder: Path) -> Path:
    """ImageNet's own: an id a line, counted from 1, which the development kit beside it tells."""
    scipy_io = pytest.importorskip("scipy.io")
    synsets = np.array(list(KIT.items()), [("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    scipy_io.savemat(folder / "meta.mat", {"synsets": synsets})
    number = {name: number for number, name in KIT.items()}
    file = folder / "ILSVRC2012_validation_ground_truth.txt"
    file.write_text("".join(f"{number[CLASSES[label]]}\n" for label in LABELS))
    return file


def labels(path: Path) -> dict[str, str]:
    source = open_source(path)
    assert source.classes == CLASSES
    return {Path(source.name(index)).name: source.classes[source.label(index)] for index in range(len(source))}


EXPECTED = dict(zip(NAMES, [CLASSES[label] for label in LABELS], strict=True))


def interrupt(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``command`` and stop it before it has converted anything."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fastvicreg.pipelines.convert.run.Conversion.run", interrupted)
        assert main(command) == 130


@pytest.mark.parametrize("format", ["beton", "shards"])
def test_a_flat_validation_split_is_labelled(imagenet: Path, tmp_path: Path, format: str) -> None:
    file = ground_truth(tmp_path)
    out = tmp_path / "out"
    assert main(["convert", str(imagenet), str(out), "--format", format, "--val-labels", str(file)]) == 0
    ending = ".beton" if format == "beton" else ""
    found = open_source(out / f"val{ending}")
    assert sorted(found.label(index) for index in range(len(found))) == sorted(LABELS)
    assert open_source(out / f"train{ending}").classes == CLASSES
    if format == "beton":
        assert labels(out / "val.beton") == EXPECTED


def test_a_tar_of_validation_images_alone_has_the_classes_of_the_development_kit(
    imagenet: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for name in NAMES:
            tar.add(imagenet / "val" / name, name)
    command = ["convert", str(tmp_path / "ILSVRC2012_img_val.tar"), str(tmp_path / "val.beton")]
    assert main([*command, "--val-labels", str(ground_truth(tmp_path))]) == 0
    assert sorted(labels(tmp_path / "val.beton").values()) == sorted(EXPECTED.values())


def test_an_interrupted_conversion_goes_on_with_the_same_labels_alone(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("".join(f"{CLASSES[label]}\n" for label in LABELS))
    command = ["convert", str(imagenet / "val"), str(tmp_path / "val.beton"), "--val-labels", str(file)]
    interrupt(command, monkeypatch)
    text = file.read_text()
    file.write_text(text.replace("n03", "n01"))
    capsys.readouterr()
    assert main(command) == 2
    assert "val.beton.partial holds the unfinished conversion" in capsys.readouterr().err
    file.write_text(text)
    assert main(command) == 0
    assert labels(tmp_path / "val.beton") == EXPECTED


def test_an_interrupted_conversion_goes_on_with_the_same_development_kit_alone(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other kit's classes have the same numbers, so that the labels alone do not tell it."""
    scipy_io = pytest.importorskip("scipy.io")
    file = ground_truth(tmp_path)
    kit = (tmp_path / "meta.mat").read_bytes()
    command = ["convert", str(imagenet / "val"), str(tmp_path / "val.beton"), "--val-labels", str(file)]
    interrupt(command, monkeypatch)
    renamed = [(number, name.replace("n", "m")) for number, name in KIT.items()]
    scipy_io.savemat(tmp_path / "meta.mat", {"synsets": np.array(renamed, [("ILSVRC2012_ID", "i4"), ("WNID", "O")])})
    capsys.readouterr()
    assert main(command) == 2
    assert "of another command or of other files (what meta.mat says was " in capsys.readouterr().err
    (tmp_path / "meta.mat").write_bytes(kit)
    assert main(command) == 0
    assert labels(tmp_path / "val.beton") == EXPECTED


def test_a_development_kit_that_no_label_needs_may_change(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("".join(f"{CLASSES[label]}\n" for label in LABELS))
    command = ["convert", str(imagenet / "val"), str(tmp_path / "val.beton"), "--val-labels", str(file)]
    interrupt(command, monkeypatch)
    (tmp_path / "meta.mat").write_bytes(b"no kit")
    assert main(command) == 0
    assert labels(tmp_path / "val.beton") == EXPECTED


def test_a_development_kit_that_cannot_be_read_is_one_line(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ground_truth(tmp_path)
    command = ["convert", str(imagenet / "val"), str(tmp_path / "val.beton"), "--val-labels", str(file)]
    for content in (b"", b"MATLAB 5.0 MAT-file" + bytes(200), (tmp_path / "meta.mat").read_bytes()[:300]):
        (tmp_path / "meta.mat").write_bytes(content)
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"cannot read {tmp_path / 'meta.mat'} (" in error
        assert error.count("\n") == 1


def test_numbers_that_the_development_kit_does_not_know_are_refused(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ground_truth(tmp_path)
    file.write_text("1\n2\n3\n7\n")
    assert main(["convert", str(imagenet / "val"), str(tmp_path / "val.beton"), "--val-labels", str(file)]) == 2
    assert f"has the label 7, which {tmp_path / 'meta.mat'} does not know" in capsys.readouterr().err


def test_a_name_that_several_images_have_labels_none_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val").mkdir()
    for number in range(3):
        (tmp_path / "val" / f"img.{number}.jpg").write_bytes(encoded(photo(number, 16, 16)))
    file = tmp_path / "labels.csv"
    file.write_text("img.0.jpg,cat\nimg.1.jpg,dog\nimg.2.jpg,eel\n")
    command = ["convert", str(tmp_path / "val"), str(tmp_path / "val.beton"), "--val-labels", str(file)]
    assert main(command) == 2
    assert "labels 'img', and 3 images have that name" in capsys.readouterr().err
    file.write_text("cat\ndog\neel\n")
    assert main(command) == 0
    assert open_source(tmp_path / "val.beton").classes == ("cat", "dog", "eel")


@pytest.mark.parametrize(
    ("content", "said", "begun"),
    [
        (None, "cannot read --val-labels", False),
        ("1\n2\n", "has 2 labels in lines of their own for 4 images", False),
        ("cat\ndog\ncat\ncat\n", "'cat' is no class of the training data", True),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_validation_split(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str, begun: bool
) -> None:
    """What needs no training classes is told before the training split is converted."""
    file = tmp_path / "labels.txt"
    if content:
        file.write_text(content)
    assert main(["convert", str(imagenet), str(tmp_path / "out"), "--val-labels", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "val.beton").exists()
    assert (tmp_path / "out" / "train.beton").exists() == begun


@pytest.mark.parametrize(("again", "said"), [("n01", "is 'n01' by this command"), ("", "has no label by this command")])
def test_a_split_that_is_there_under_other_labels_is_refused(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], again: str, said: str
) -> None:
    file, other, out = tmp_path / "labels.txt", tmp_path / "other.txt", tmp_path / "out"
    file.write_text("".join(f"{CLASSES[label]}\n" for label in LABELS))
    command = ["convert", str(imagenet), str(out)]
    assert main([*command, "--val-labels", str(file)]) == 0
    for path in out.glob("train.beton*"):
        path.unlink()
    other.write_text(f"{again}\n" * 4)
    capsys.readouterr()
    assert main([*command, *(["--val-labels", str(other)] if again else [])]) == 2
    assert f"{out}/val.beton: {NAMES[0]} is 'n03' there, and {said}" in capsys.readouterr().err
    assert not (out / "train.beton").exists()
    assert main([*command, "--val-labels", str(file)]) == 0
    assert labels(out / "val.beton") == EXPECTED


def test_labels_that_stand_for_those_of_class_folders_are_told(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of four images lies in the folder of the class that the file gives it."""
    for name, folder in zip(NAMES, ("n03", "n02", "n03", "n03"), strict=True):
        (imagenet / "val" / folder).mkdir(exist_ok=True)
        (imagenet / "val" / name).rename(imagenet / "val" / folder / name)
    file = tmp_path / "labels.csv"
    file.write_text("".join(f"{name},{CLASSES[label]}\n" for name, label in zip(NAMES, LABELS, strict=True)))
    command = ["convert", str(imagenet), str(tmp_path / "out"), "--val-labels", str(file)]
    assert main(command) == 0
    told = (
        f"--val-labels {file} replaces the labels that the images have already, by folder or as stored: 3 of 4 differ"
    )
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "replaces the labels" in line)
    assert line == f"{told} (n02/{NAMES[1]}: 'n02' there, 'n01' by the file)"
    assert labels(tmp_path / "out/val.beton") == EXPECTED
    found = open_data(TrainConfig(data=DataConfig(data=str(imagenet), val_labels=str(file))))
    assert line in found.notes
    again = open_data(TrainConfig(data=DataConfig(data=str(tmp_path / "out"), val_labels=str(file))))
    assert any(note.endswith("as stored: all are the same") for note in again.notes)


@pytest.mark.parametrize("format", ["beton", "shards"])
def test_an_addition_keeps_the_labels_of_before_or_is_refused(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    file, other = tmp_path / "labels.csv", tmp_path / "other.csv"
    file.write_text("".join(f"{name},{CLASSES[label]}\n" for name, label in zip(NAMES, LABELS, strict=True)))
    other.write_text(file.read_text().replace("n03", "n01"))
    target = tmp_path / ("val.beton" if format == "beton" else "val")
    command = ["convert", str(imagenet / "val"), str(target), "--format", format]
    assert main([*command, "--val-labels", str(file)]) == 0
    before = open_source(target)
    (imagenet / "val" / "later.JPEG").write_bytes(encoded(photo(20, 16, 16)))
    capsys.readouterr()
    assert main([*command, "--append"]) == 2
    assert "and has no label by this command: give --val-labels or --label as it was" in capsys.readouterr().err
    if format == "shards":
        assert main([*command, "--append", "--val-labels", str(other)]) == 2
        assert "and what is stored keeps its labels" in capsys.readouterr().err
    assert open_source(target).classes == before.classes
    with file.open("a") as more:
        more.write("later.JPEG,n02\n")
    assert main([*command, "--append", "--val-labels", str(file)]) == 0
    found = open_source(target)
    assert sorted(found.label(index) for index in range(len(found))) == sorted([*LABELS, 1])


def test_a_mistake_in_the_first_split_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": encoded(photo(number, 16, 16)), "path": None} for number in range(4)]
    (tmp_path / "hub").mkdir()
    for split in ("train", "validation"):
        table = arrow.table({"image": images, "animal": [0, 1, 0, 1]})
        parquet.write_table(table, tmp_path / "hub" / f"x-{split}-00000-of-00001.parquet")
    assert main(["convert", str(tmp_path / "hub"), str(tmp_path / "out"), "--label", "species"]) == 2
    assert "x-train-00000-of-00001.parquet has no column of numbers or text of that name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labels_without_a_validation_split_are_refused(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (imagenet / "val").rename(tmp_path / "elsewhere")
    code = main(["convert", str(imagenet), str(tmp_path / "out"), "--val-labels", str(tmp_path / "labels.txt")])
    assert code == 2
    assert "has no validation split: it holds train alone" in capsys.readouterr().err
