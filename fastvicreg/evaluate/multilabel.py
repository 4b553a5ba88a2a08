"""Images that are of several classes: Pascal VOC's folders, or a CSV of images, splits and labels.

N images, C classes. A target is 1 where the class is there, 0 where it is not, -1 where it does not count: VOC's class
of which an image has "difficult" objects alone.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from fastvicreg.contracts import Source
from fastvicreg.datasets import Datasets
from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import image_size

VOC_SPLITS = ("trainval", "test")
SPLITS = {"train": 0, "trainval": 0, "training": 0, "val": 1, "validation": 1, "test": 1}
"""A split's name in a CSV: 0 is learnt from, 1 is evaluated."""
SEPARATORS = str.maketrans("|;", "  ")


@dataclass
class MultiLabelSource:
    """Image files of one folder, each of any number of classes; a ``Source`` whose ``label`` is -1."""

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    targets_NC: np.ndarray  # int8

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, index: int) -> bytes:
        return (self.root / self.files[index]).read_bytes()

    def label(self, index: int) -> int:
        return -1

    def size(self, index: int) -> tuple[int, int]:
        return image_size(self.encoded(index))

    def name(self, index: int) -> str:
        return self.files[index]


def targets_of(source: object, classes: Sequence[str]) -> np.ndarray:
    """targets_NC of a source of several labels, or of one label an image."""
    if isinstance(source, MultiLabelSource):
        return source.targets_NC
    label = source.label  # type: ignore[attr-defined]
    label_N = np.array([label(index) for index in range(len(source))])  # type: ignore[arg-type]
    return (label_N[:, None] == np.arange(len(classes))).astype(np.int8)


def open_multilabel(path: str | Path) -> Datasets | None:
    """VOC's folder (or the one above it), or a CSV; None where ``path`` is neither.

    ``UserError`` for what is missing or does not fit together.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        root, rows = path.parent, _csv_rows(path)
    elif folder := _voc_folder(path):
        root, rows = folder / "JPEGImages", _voc_rows(folder)
    else:
        return None
    classes = tuple(sorted({name for split in rows for labels in split.values() for name in labels}))
    bank, queries = (_source(root, split, classes, path) for split in rows)
    return Datasets(bank, queries, str(root), str(root))


def _source(root: Path, labels: Mapping[str, Mapping[str, int]], classes: tuple[str, ...], path: Path) -> Source:
    if missing := [file for file in labels if not (root / file).is_file()]:
        raise UserError(f"--data {path}: {len(missing):,} of its images are not in {root}, such as {missing[0]}.")
    targets_NC = np.zeros((len(labels), len(classes)), np.int8)
    number = {name: place for place, name in enumerate(classes)}
    for row, found in zip(targets_NC, labels.values(), strict=True):
        for name, value in found.items():
            row[number[name]] = value
    return MultiLabelSource(root, tuple(labels), classes, targets_NC)


def _voc_folder(path: Path) -> Path | None:
    folders = [path, *sorted(path.iterdir())] if path.is_dir() else []
    return next((f for f in folders if (f / "Annotations").is_dir() and (f / "ImageSets" / "Main").is_dir()), None)


def _voc_rows(folder: Path) -> list[dict[str, dict[str, int]]]:
    return [_voc_split(folder, split) for split in VOC_SPLITS]


def _voc_split(folder: Path, split: str) -> dict[str, dict[str, int]]:
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        stems = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(
            f"cannot read {listing}: {error.strerror}; VOC's test images are a download of their own."
        ) from None
    return {f"{stem}.jpg": _objects(folder / "Annotations" / f"{stem}.xml") for stem in stems}


def _objects(file: Path) -> dict[str, int]:
    """1 for each class of an image's objects, -1 for one whose objects are all difficult."""
    try:
        objects = ElementTree.parse(file).iter("object")
        found: dict[str, int] = {}
        for each in objects:
            name = (each.findtext("name") or "").strip()
            difficult = (each.findtext("difficult") or "0").strip() == "1"
            found[name] = max(found.get(name, -1), -1 if difficult else 1)
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"cannot read the annotation {file}: {getattr(error, 'strerror', None) or error}.") from error
    return found


def _csv_rows(file: Path) -> list[dict[str, dict[str, int]]]:
    rows: list[dict[str, dict[str, int]]] = [{}, {}]
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            if lacking := {"image", "split", "labels"} - set(reader.fieldnames or ()):
                raise UserError(f"--data {file} has no column {sorted(lacking)[0]!r}: give image, split and labels.")
            for number, row in enumerate(reader, 2):
                if row["split"] not in SPLITS:
                    raise UserError(
                        f"--data {file}, line {number}: the split {row['split']!r} is none of {', '.join(SPLITS)}."
                    )
                labels = (row["labels"] or "").translate(SEPARATORS).split()
                rows[SPLITS[row["split"]]][row["image"]] = dict.fromkeys(labels, 1)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read --data {file}: {getattr(error, 'strerror', None) or error}.") from error
    for split, name in zip(rows, ("train", "test"), strict=True):
        if not split:
            raise UserError(f"--data {file} has no image of the split {name}.")
    return rows
