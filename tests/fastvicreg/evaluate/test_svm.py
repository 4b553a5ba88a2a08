"""Support vector machines on images of several classes: VOC's folders, a CSV, class folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import encoded, photo
from PIL import Image
from sklearn.metrics import average_precision_score

from fastvicreg.errors import UserError
from fastvicreg.evaluate.multilabel import open_multilabel, targets_of
from fastvicreg.evaluate.support_vectors import average_precisions, interpolated_precision

Answer = Callable[..., tuple[int, str]]

QUIET = ("--device", "cpu", "--workers", "1", "--costs", "1", "10")
COLOURS = {"cat": (230, 40, 40), "dog": (40, 230, 40), "eel": (40, 40, 230)}


def image(labels: list[str], seed: int) -> bytes:
    """A picture that shows its classes as coloured fields."""
    made = np.array(photo(seed, 32, 32))
    for place, name in enumerate(COLOURS):
        if name in labels:
            made[place * 10 : place * 10 + 10] = COLOURS[name]
    return encoded(Image.fromarray(made), quality=95)


def voc(root: Path, count: int = 18) -> Path:
    """VOC2007's layout; every seventh image has a difficult eel."""
    folder = root / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    names = list(COLOURS)
    for split in ("trainval", "test"):
        stems = []
        for number in range(count):
            stem = f"{split}{number:03d}"
            labels = sorted({names[number % 3], names[number // 3 % 3]})
            objects = "".join(f"<object><name>{n}</name><difficult>0</difficult></object>" for n in labels)
            if number % 7 == 0 and "eel" not in labels:
                objects += "<object><name>eel</name><difficult>1</difficult></object>"
            (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
            (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(image(labels, number))
            stems.append(stem)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return root


def table(root: Path) -> Path:
    """The same images and labels, without the difficult ones, as a CSV."""
    data = open_multilabel(root)
    assert data is not None
    lines = ["image,split,labels"]
    for split, source in (("train", data.train), ("test", data.validation)):
        assert source is not None
        for index, targets in enumerate(targets_of(source, source.classes)):
            labels = "|".join(np.array(source.classes)[targets == 1])
            lines.append(f"VOC2007/JPEGImages/{source.name(index)},{split},{labels}")
    path = root / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_voc_and_a_csv_say_the_same(tmp_path: Path) -> None:
    root = voc(tmp_path)
    by_folder = open_multilabel(root / "VOC2007")
    by_table = open_multilabel(table(root))
    assert by_folder is not None
    assert by_table is not None
    assert by_folder.train.classes == by_table.train.classes == ("cat", "dog", "eel")
    ours, theirs = (targets_of(data.train, data.train.classes) for data in (by_folder, by_table))
    assert (ours == -1).sum() == 1  # of images 0, 7 and 14 the first alone has no eel that counts
    assert np.array_equal(np.maximum(ours, 0), theirs)
    assert open_multilabel(root / "VOC2007" / "JPEGImages") is None


def test_an_svm_tells_what_the_pictures_show(uninterrupted: tuple[Path, Path], tmp_path: Path, answer: Answer) -> None:
    root, out = voc(tmp_path / "voc"), tmp_path / "figures.json"
    for data in (root, root / "VOC2007", table(root)):
        code, text = answer("svm", uninterrupted[1], "--data", data, "--json", out, "--report", tmp_path / "r", *QUIET)
        assert code == 0, text
        mean, *rows = json.loads(out.read_text())["rows"]
        assert [row["class"] for row in rows] == ["cat", "dog", "eel"]
        assert mean["average_precision"] == pytest.approx(np.mean([row["average_precision"] for row in rows]))
        assert mean["average_precision"] > 75
        assert {row["cost"] for row in rows} <= {1.0, 10.0}
        assert mean["bank"] == mean["queries"] == 18
    code, text = answer("svm", uninterrupted[1], "--data", root, "--val-labels", tmp_path / "labels.txt", *QUIET)
    assert (code, "this protocol's layout has labels of its own; leave it out" in text) == (2, True), text


def test_class_folders_and_features_are_one_class_an_image(
    uninterrupted: tuple[Path, Path], arrays: dict[str, Any], tmp_path: Path, answer: Answer
) -> None:
    assert answer("svm", uninterrupted[1], *QUIET, "--report", tmp_path / "r")[0] == 0
    np.savez(tmp_path / "features.npz", **arrays)
    out = tmp_path / "figures.json"
    assert answer("svm", "--features", tmp_path / "features.npz", "--json", out)[0] == 0
    assert json.loads(out.read_text())["rows"][0]["average_precision"] == 100


def test_precision_is_interpolated_and_never_below_the_plain_one() -> None:
    there, score = np.array([0, 1, 1, 0, 1], bool), np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    # precisions at the three: 1/2, 2/3, 3/5; the best from each on: 2/3, 2/3, 3/5
    assert interpolated_precision(there, score) == pytest.approx((2 / 3 + 2 / 3 + 3 / 5) / 3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        there, score = rng.random(40) < 0.3, rng.standard_normal(40)
        assert interpolated_precision(there, score) >= average_precision_score(there, score) - 1e-12


def test_what_does_not_count_is_learnt_from_and_not_evaluated() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 5))
    targets = (features[:, :1] > 0).astype(np.int8)
    answers = targets.copy()
    answers[:5] = -1
    (some,) = average_precisions(features, targets, features, answers, (1.0,))
    (rest,) = average_precisions(features, targets, features[5:], targets[5:], (1.0,))
    assert some == rest
    flipped = targets.copy()
    flipped[:5] = -1
    (learnt,) = average_precisions(features, flipped, features, answers, (1.0,))
    flipped[flipped == -1] = 0
    (absent,) = average_precisions(features, flipped, features, answers, (1.0,))
    assert learnt == absent


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "ImageSets" / "Main" / "test.txt").unlink(), "VOC's test images are a download of their own"),
        (lambda f: (f / "JPEGImages" / "test003.jpg").unlink(), "1 of its images are not in"),
        (lambda f: (f / "Annotations" / "test003.xml").write_text("<annotation>"), "cannot read the annotation"),
    ],
)
def test_a_damaged_voc_is_one_line(damage: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    damage(voc(tmp_path) / "VOC2007")
    with pytest.raises(UserError, match=says):
        open_multilabel(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,labels\na.jpg,cat\n", "has no column 'split'"),
        ("image,split,labels\na.jpg,fold1,cat\n", "line 2: the split 'fold1' is none of train"),
        ("image,split,labels\na.jpg,train,cat\n", "has no image of the split test"),
        ("image,split,labels\na.jpg,train,cat\na.jpg,test,cat\n", "1 of its images are not in"),
    ],
)
def test_a_csv_s_fault_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        open_multilabel(path)


def test_too_few_images_and_a_missing_library_are_one_line(
    arrays: dict[str, Any], tmp_path: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "features.npz"
    np.savez(path, **arrays)
    assert "--costs 0:" in answer("svm", "--features", path, "--costs", "0")[1]
    arrays["train_labels"][3::3] = 1
    np.savez(path, **arrays)
    code, line = answer("svm", "--features", path)
    assert code == 2
    assert "the class '0' has 1 training images" in line
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, line = answer("svm", "--features", path)
    assert code == 2
    assert "pip install 'fastvicreg[eval]'" in line


def test_a_class_that_nothing_is_asked_of_does_not_lower_the_mean(
    arrays: dict[str, np.ndarray], answer: Answer, tmp_path: Path
) -> None:
    asked = arrays["val_labels"] != 1
    arrays["val_features"], arrays["val_labels"] = arrays["val_features"][asked], arrays["val_labels"][asked]
    np.savez(tmp_path / "features.npz", allow_pickle=False, **arrays)
    out = tmp_path / "figures.json"
    code, text = answer("svm", "--features", tmp_path / "features.npz", "--costs", "1", "--json", out)
    assert code == 0, text
    assert "1 classes of which no image is asked for are left out of the mean: '1'" in text
    mean, *each = json.loads(out.read_text())["rows"]
    assert [row["class"] for row in each] == ["0", "2"]
    assert mean["average_precision"] == pytest.approx(sum(row["average_precision"] for row in each) / 2)
    assert mean["average_precision"] > 90
