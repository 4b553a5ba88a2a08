"""Splits are found wherever people put them, are never classes, and what cannot be told is refused in one line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from images import encoded, photo
from tars import members, write_shard

from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import convert_dataset
from fastvicreg.pipelines.sources import find_splits, one_dataset, splits_of
from fastvicreg.pipelines.sources.splits import split_name
from fastvicreg.pipelines.verify import verify_dataset

IMAGE = encoded(photo(0, 9, 9), "PNG")


def fill(root: Path, folders: Iterable[str], classes: Iterable[str] = ("ant", "bee")) -> Path:
    """One image in each class of each folder; no classes: the images lie in the folders themselves."""
    for folder in folders:
        for name in list(classes) or [""]:
            (root / folder / name).mkdir(parents=True, exist_ok=True)
            (root / folder / name / "0.png").write_bytes(IMAGE)
    return root


@pytest.mark.parametrize(
    ("folders", "train", "validation"),
    [
        (("train", "val"), "train", "val"),
        (("train", "test"), "train", "test"),
        (("train", "test", "val"), "train", "val"),
        (("train", "validation"), "train", "validation"),
        (("Train", "Valid"), "Train", "Valid"),
        (("TRAIN", "DEV"), "TRAIN", "DEV"),
        (("training", "testing"), "training", "testing"),
        (("seg_train", "seg_test"), "seg_train", "seg_test"),
        (("train2017", "val2017"), "train2017", "val2017"),
        (("train_images", "val_images", "masks"), "train_images", "val_images"),
        (("train", "val", "unlabeled"), "train", "val"),
        (("train",), "train", None),
        (("Data/CLS-LOC/train", "Data/CLS-LOC/val"), "Data/CLS-LOC/train", "Data/CLS-LOC/val"),
        (("a/b/c/d/train", "a/b/c/d/val"), "a/b/c/d/train", "a/b/c/d/val"),
        (("imagenet/train",), "imagenet/train", None),
    ],
)
def test_splits_are_found(tmp_path: Path, folders: tuple[str, ...], train: str, validation: str | None) -> None:
    fill(tmp_path, folders)
    assert find_splits(tmp_path) == (tmp_path / train, validation and tmp_path / validation)
    assert open_source(tmp_path / train).classes == ("ant", "bee")
    if validation is None:
        assert one_dataset(tmp_path, "convert") == tmp_path / train
        return
    for refused in (lambda: convert_dataset(tmp_path, tmp_path.parent / "x.beton"), lambda: verify_dataset(tmp_path)):
        with pytest.raises(UserError, match=r"datasets: (convert|verify) each by itself") as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_flat_splits_are_found_too(tmp_path: Path) -> None:
    fill(tmp_path, ("train", "val"), classes=())
    assert find_splits(tmp_path) == (tmp_path / "train", tmp_path / "val")


@pytest.mark.parametrize(
    ("folders", "root"),
    [
        (("ant", "bee"), "."),
        (("ant",), "."),
        (("train", "bus", "car"), "."),  # CIFAR-100 has a class of trains
        (("test", "cat", "dog"), "."),
        (("freight_train", "passenger_train", "test-tube"), "."),
        (("val-d-isere", "training_shoe"), "."),
        (("images/ant", "images/bee"), "images"),
        (("imagenet/imagenet/ant", "imagenet/imagenet/bee"), "imagenet/imagenet"),
        (("class/deep",), "."),
    ],
)
def test_classes_are_no_splits(tmp_path: Path, folders: tuple[str, ...], root: str) -> None:
    fill(tmp_path, folders, classes=())
    found = splits_of(tmp_path)
    assert (found.root, found.parts) == (tmp_path / root, ())
    assert len(open_source(one_dataset(tmp_path, "convert"))) == len(folders)


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (("val",), "holds val/ but no train/"),
        (("val", "test"), "holds val/ and test/ but no train/|holds test/ and val/ but no train/"),
        (("train", "extra"), "may be a split or a class"),
        (("photo/train", "photo/val", "sketch/train", "sketch/val"), "several datasets with splits"),
        (("new/train", "new/val", "old"), "old/ too: give"),
        (("train_a", "val_a", "train_b", "val_b"), "give --data and --val-data by themselves"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, folders: tuple[str, ...], says: str) -> None:
    fill(tmp_path, folders)
    with pytest.raises(UserError, match=says) as caught:
        splits_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_annotations_beside_the_splits_are_no_data(tmp_path: Path) -> None:
    fill(tmp_path, ("ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val"))
    for split in ("train", "val"):
        (tmp_path / "ILSVRC/Annotations/CLS-LOC" / split / "ant").mkdir(parents=True)
        (tmp_path / "ILSVRC/Annotations/CLS-LOC" / split / "ant/0.xml").write_text("<annotation/>")
    found = splits_of(tmp_path)
    assert found.root == tmp_path / "ILSVRC/Data/CLS-LOC"
    assert found.notes == (f"splits found in {found.root}",)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    (note,) = splits_of(fill(tmp_path, ("train", "val", "unlabeled"))).notes
    assert "not read: unlabeled/" in note


def test_archives_beside_the_folders_that_they_were_unpacked_to_do_not_matter(tmp_path: Path) -> None:
    fill(tmp_path, ("train", "val"))
    for split in ("train", "val"):
        (tmp_path / f"ILSVRC2012_img_{split}.tar").write_bytes(b"")
        (tmp_path / f"{split}.beton").write_bytes(b"")
    assert find_splits(tmp_path) == (tmp_path / "train", tmp_path / "val")


def test_a_source_never_takes_splits_for_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train/ and val/, which are splits and no classes"):
        open_source(fill(tmp_path, ("train", "val")))


def test_a_link_back_into_the_data_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, ("train", "val"))
    (tmp_path / "train/train").symlink_to(tmp_path / "train")
    (tmp_path / "val/all").symlink_to(tmp_path)
    assert find_splits(tmp_path) == (tmp_path / "train", tmp_path / "val")
    assert splits_of(tmp_path / "train").parts == ()


def test_shards_of_several_splits_in_one_folder(tmp_path: Path) -> None:
    for split, first, count in (("train", 0, 4), ("train", 4, 5), ("validation", 9, 3)):
        write_shard(tmp_path / "hub", f"imagenet1k-{split}-{first:04d}", members(count, first))
    train, validation = find_splits(tmp_path / "hub")
    assert (train.name, validation and validation.name) == ("imagenet1k-train-*.tar", "imagenet1k-validation-*.tar")
    assert [len(open_source(part.path)) for part in splits_of(tmp_path / "hub").parts] == [9, 3]
    assert len(open_source(tmp_path / "hub/imagenet1k-train-{0000..0000}.tar")) == 4
    with pytest.raises(UserError, match=r"imagenet1k-train-0001\.tar is named by .* and is no file"):
        open_source(tmp_path / "hub/imagenet1k-train-{0000..0002}.tar")
    with pytest.raises(UserError, match="no file matches"):
        open_source(tmp_path / "hub/other-*.tar")
    write_shard(tmp_path / "hub", "extra", members(1))
    with pytest.raises(UserError, match=r"beside extra\.tar: give a pattern, such as '.*imagenet1k-train-\*\.tar'"):
        splits_of(tmp_path / "hub")


def test_shards_of_one_split_are_one_dataset(tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / "hub", f"cc3m-train-{number:04d}", members(2, 2 * number))
    assert splits_of(tmp_path / "hub").parts == ()
    assert len(open_source(tmp_path / "hub")) == 4
    assert splits_of(tmp_path).root == tmp_path / "hub"  # one level too high


def test_beton_files_of_several_splits_in_one_folder(tmp_path: Path) -> None:
    data, out = fill(tmp_path / "data", ("train", "val")), tmp_path / "out"
    out.mkdir()
    convert_dataset(data / "train", out / "train_500_90.beton")
    assert splits_of(out).root == out / "train_500_90.beton"
    convert_dataset(data / "val", out / "val_500_90.beton")
    assert find_splits(out) == (out / "train_500_90.beton", out / "val_500_90.beton")
    convert_dataset(data / "val", out / "val_400_90.beton")
    with pytest.raises(UserError, match=r"holds 3 \.beton files .*: give one of them"):
        splits_of(out)


def test_names_are_split_names_as_whole_words_alone() -> None:
    assert split_name("Seg_Train") == ("train", "seg_*")
    assert split_name("val2017") == ("val", "*2017")
    assert [split_name(name) for name in ("trains", "restrain", "evaluation", "train-val", "device")] == [None] * 5
