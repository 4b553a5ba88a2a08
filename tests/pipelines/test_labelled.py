"""Labels from a file for images that lie flat: every way to write them down, and what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo

from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.datasets import open_data
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.sources.labelled import label_by_file

CLASSES = ("n01", "n02", "n03")
NAMES = [f"ILSVRC2012_val_{n:08d}" for n in range(1, 5)]
LABELS = [2, 0, 1, 0]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    (tmp_path / "val").mkdir()
    for name in NAMES:
        (tmp_path / "val" / f"{name}.JPEG").write_bytes(encoded(photo(0, 16, 16)))
    return tmp_path / "val"


def labels(flat: Path, name: str, text: str, classes: tuple[str, ...] = CLASSES) -> list[int]:
    file = flat.parent / name
    file.write_text(text)
    source = label_by_file(open_source(flat), file, classes)
    return [source.label(index) for index in range(len(source))]


PAIRS = list(zip(NAMES, [CLASSES[label] for label in LABELS], strict=True))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("numbers.txt", "".join(f"{label}\n" for label in LABELS)),
        ("names.txt", "\n".join(name for _, name in PAIRS)),
        ("caffe.txt", "".join(f"{name}.JPEG {label}\n" for name, label in zip(NAMES, LABELS, strict=True))),
        ("kaggle.csv", "ImageId,PredictionString\n" + "".join(f"{n},{c} 1 2 3 4\n" for n, c in reversed(PAIRS))),
        ("map.csv", "\ufefffile,label\r\n" + "".join(f'"val/{n}.JPEG","{c}"\r\n' for n, c in PAIRS)),
        ("files.json", json.dumps({f"val/{n}.JPEG": c for n, c in PAIRS})),
        ("classes.json", json.dumps({c: [n for n, other in PAIRS if other == c] for c in CLASSES})),
    ],
)
def test_every_way_to_write_labels_down_gives_the_same(flat: Path, name: str, text: str) -> None:
    assert labels(flat, name, text) == LABELS


def test_images_that_the_file_does_not_name_have_no_label_and_are_counted(flat: Path) -> None:
    assert labels(flat, "some.csv", f"{NAMES[1]},n03\nother,n01\n") == [-1, 2, -1, -1]
    notes = label_by_file(open_source(flat), flat.parent / "some.csv", CLASSES).notes
    assert [note for note in notes if f"no label for 3 of 4 images, such as {NAMES[0]}" in note]


@pytest.mark.parametrize("mark", [",", ", ", ";", "\t"])
def test_classes_and_files_of_several_words_stay_whole(tmp_path: Path, mark: str) -> None:
    """`golden` was the one class of golden retrievers and golden eagles."""
    rows = [("a dog.jpg", "golden retriever"), ("b.jpg", "golden eagle"), ("c.jpg", "class 12"), ('"a, b.jpg"', "eel")]
    (tmp_path / "val").mkdir()
    for name, _ in rows:
        (tmp_path / "val" / name.strip('"')).write_bytes(encoded(photo(0, 16, 16)))
    (tmp_path / "labels.csv").write_text("".join(f"{name}{mark}{label}\n" for name, label in rows))
    source = label_by_file(open_source(tmp_path / "val"), tmp_path / "labels.csv", ())
    found = {source.name(index): source.classes[source.label(index)] for index in range(len(source))}
    assert found == {name.strip('"'): label for name, label in rows}


def test_without_classes_the_files_own_names_are_taken(flat: Path) -> None:
    assert labels(flat, "own.csv", "".join(f"{n},{c}\n" for n, c in PAIRS), ()) == LABELS


def test_numbers_from_1_are_the_development_kits_or_refused(flat: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    text = "".join(f"{number}\n" for number in (1, 2, 3, 2))
    with pytest.raises(UserError, match=r"counts from 1.*meta\.mat beside it"):
        labels(flat, "truth.txt", text)
    synsets = np.array([(1, "n03"), (2, "n01"), (3, "n02")], [("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    scipy_io.savemat(flat.parent / "meta.mat", {"synsets": synsets})
    assert labels(flat, "truth.txt", text) == LABELS


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("short.txt", "1\n2\n", "has 2 labels in lines of their own for 4 images"),
        ("other.csv", "a,n01\nb,n02\n", "names none of the images, such as ILSVRC2012_val_00000001.JPEG"),
        ("strange.csv", f"{NAMES[0]},cat\n", "'cat' is no class of the training data"),
        ("large.txt", "0\n1\n2\n3\n", "has the label 3, and there are 3 classes"),
        ("twice.csv", f"{NAMES[0]},n01\n{NAMES[1]},n02\n{NAMES[0]},n02\n", "the labels 'n01' and 'n02'"),
        ("words.txt", f"{NAMES[0]}.JPEG golden retriever\n", "put a tab or a comma between"),
        ("no.json", "{", "is no JSON"),
        ("list.json", "[]", "holds a list"),
    ],
)
def test_what_cannot_be_meant_is_one_line(flat: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        labels(flat, name, text)
    assert "\n" not in str(caught.value)


def test_a_run_takes_them_for_its_validation_data(flat: Path, tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.jpg").write_bytes(encoded(photo(1, 16, 16)))
    (tmp_path / "truth.csv").write_text("".join(f"{n},{c}\n" for n, c in PAIRS))
    data = DataConfig(data=str(tmp_path), val_labels=str(tmp_path / "truth.csv"))
    found = open_data(TrainConfig(data=data))
    assert found.validation is not None
    assert [found.validation.label(index) for index in range(4)] == LABELS
    assert found.notes[-1] == "train: 3 images, 3 classes; val: 4 images, 3 classes"
    with pytest.raises(UserError, match="there are no validation images"):
        open_data(TrainConfig(data=DataConfig(data=str(tmp_path / "train"), val_labels="x")))
    with pytest.raises(UserError, match="--val-labels x goes with --data"):
        open_data(TrainConfig(data=DataConfig(val_labels="x")))
    with pytest.raises(UserError, match="cannot read --val-labels"):
        open_data(TrainConfig(data=DataConfig(data=str(tmp_path), val_labels=str(tmp_path / "no"))))
