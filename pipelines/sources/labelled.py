"""Labels from a file for images that lie flat, as ImageNet's validation images do: text, CSV or JSON.

A line is a label alone, in the order of the sorted file names, or a file's name and its label, apart by what stands in
every line: a tab, a comma, a semicolon, else spaces. Names may hold spaces where these do not part them. Further
columns do not matter, nor do numbers behind a label (Kaggle's ``LOC_val_solution.csv`` has boxes there). JSON is
{file: label} or {label: [files]}. A label is a class's name or its number from 0.
``ILSVRC2012_validation_ground_truth.txt`` counts from 1 in an order of its own,
which only the development kit beside it tells (``development_kit``).
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.json_text import parse_json
from fastvicreg.pipelines.pairs.modalities import modality_of
from fastvicreg.pipelines.passed import Passed, Passing, notes_of
from fastvicreg.pipelines.sources.development_kit import DevelopmentKit
from fastvicreg.pipelines.to_rgb import rule_of

_BOXES = re.compile(r"(\S+)(?: -?\d+){4}(?: \S+(?: -?\d+){4})*")
"""Kaggle's: a label and its box, as often as there are objects."""


class LabelledSource:
    """``source`` with labels of its own; -1 where the file names none.

    ``notes`` follow those of ``source``; ``kit`` is the digest of what a development kit said of them.
    """

    def __init__(
        self,
        source: Source,
        label_N: list[int],
        classes: tuple[str, ...],
        *,
        notes: tuple[str, ...] = (),
        kit: str = "",
    ) -> None:
        self._source, self._label = source, label_N
        self.classes = classes
        self.kit = kit
        self.to_rgb = rule_of(source)
        self.modality = modality_of(source)
        self.notes = (*notes_of(source), *notes)
        self.passed = source.passed if isinstance(source, Passing) else Passed()

    def __len__(self) -> int:
        return len(self._source)

    def encoded(self, index: int) -> bytes | memoryview:
        return self._source.encoded(index)

    def label(self, index: int) -> int:
        return self._label[index]

    def size(self, index: int) -> tuple[int, int]:
        return self._source.size(index)

    def name(self, index: int) -> str:
        return self._source.name(index)


def numbered_as(source: Source, classes: tuple[str, ...]) -> Source:
    """``source`` under the numbers that its classes' names have among ``classes``; as it is where one has none there.

    So a validation split that lacks a class, or lists them in another order, has the training split's numbers.
    """
    number = {name: place for place, name in enumerate(classes)}
    if source.classes == classes or not source.classes or not set(source.classes) <= set(number):
        return source
    numbers = [number[name] for name in source.classes]
    labels = [source.label(index) for index in range(len(source))]
    return LabelledSource(source, [numbers[label] if label >= 0 else -1 for label in labels], classes)


def label_by_file(source: Source, file: str | Path, classes: tuple[str, ...]) -> LabelledSource:
    """``source`` with the labels that ``file`` gives, numbered as in ``classes`` (none: as they come, sorted).

    Without classes numbers are their own in their order, or where the development kit lies beside the file its WordNet
    ids. Labels that the images have already, as those in class folders, are replaced, which a note tells.
    ``UserError`` where the file cannot be read, does not fit the images, or its labels are no classes.
    """
    file = Path(file)
    label_by_index = _read(file, source)
    found = [label_by_index.get(index, "") for index in range(len(source))]
    if not any(found):
        raise UserError(f"--val-labels {file} names none of the images, such as {source.name(0)}.")
    kit = DevelopmentKit(file)
    if not classes:
        found, classes = _named(found, file, kit)
    label_N = _numbers(found, classes, file, kit)
    notes = (*_unnamed(source, label_N, file), *_replaced(source, label_N, classes, file))
    return LabelledSource(source, label_N, classes, notes=notes, kit=kit.digest())


def _unnamed(source: Source, label_N: list[int], file: Path) -> Iterator[str]:
    """A word on the images that are left without a label, where there are some."""
    without = [index for index, label in enumerate(label_N) if label < 0]
    if without:
        yield (
            f"--val-labels {file} has no label for {len(without):,} of {len(source):,} images, such as "
            f"{source.name(without[0])}: they have none"
        )


def _replaced(source: Source, label_N: list[int], classes: tuple[str, ...], file: Path) -> Iterator[str]:
    """A word on the labels that ``source`` has of its own, where it has some: those of the file stand for them."""
    before = [class_name(source.classes, source.label(index)) for index in range(len(source))]
    if not any(before):
        return
    now = [class_name(classes, label) for label in label_N]
    differ = [index for index in range(len(source)) if now[index] != before[index]]
    said = "all are the same"
    if differ:
        was, is_now = (f"{names[differ[0]]!r}" if names[differ[0]] else "no label" for names in (before, now))
        said = (
            f"{len(differ):,} of {len(before):,} differ ({source.name(differ[0])}: {was} there, {is_now} by the file)"
        )
    yield f"--val-labels {file} replaces the labels that the images have already, by folder or as stored: {said}"


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class, or its number where it has none; "" for no label."""
    if label < 0:
        return ""
    return classes[label] if label < len(classes) else str(label)


def _named(labels: list[str], file: Path, kit: DevelopmentKit) -> tuple[list[str], tuple[str, ...]]:
    """(labels, the classes that they name): numbers become WordNet ids where the development kit tells them."""
    given = {label for label in labels if label}
    if not all(label.isdecimal() for label in given):
        return labels, tuple(sorted(given))
    if "0" in given or kit.path is None:
        return labels, tuple(sorted(given, key=int))
    names, last = kit.names, max(map(int, given))
    if strange := sorted(set(map(int, given)) - set(names)):
        raise UserError(f"--val-labels {file} has the label {strange[0]}, which {kit.path} does not know.")
    # The kit goes on with groups of classes, which no image has.
    classes = tuple(sorted(name for number, name in names.items() if number <= last))
    return [names.get(int(label), "") if label else "" for label in labels], classes


def _numbers(labels: list[str], classes: tuple[str, ...], file: Path, kit: DevelopmentKit) -> list[int]:
    place = {name: number for number, name in enumerate(classes)}
    given = {label for label in labels if label}
    if given <= set(place):
        return [place.get(label, -1) for label in labels]
    if strange := sorted(label for label in given if not label.isdecimal()):
        raise UserError(f"--val-labels {file}: {strange[0]!r} is no class of the training data.")
    numbers = {int(label) for label in given}
    if max(numbers) < len(classes):
        return [int(label) if label else -1 for label in labels]
    if min(numbers) < 1 or max(numbers) > len(classes):
        raise UserError(f"--val-labels {file} has the label {max(numbers)}, and there are {len(classes)} classes.")
    return [place.get(kit.names.get(int(label), ""), -1) if label else -1 for label in labels]


def _read(file: Path, source: Source) -> dict[int, str]:
    """{index: label} as the file has it."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --val-labels {file}: {getattr(error, 'strerror', None) or error}.") from error
    if file.suffix.lower() == ".json":
        return _by_name(file, _json_pairs(file, text), source)
    rows = _rows(file, [line.strip() for line in text.splitlines() if line.strip()])
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(source):
            raise UserError(
                f"--val-labels {file} has {len(rows):,} labels in lines of their own for {len(source):,} images: give "
                "each line the file's name too."
            )
        return dict(enumerate(row[0] for row in rows))
    return _by_name(file, [(_stem(row[0]), row[1]) for row in rows if len(row) > 1], source)


def _rows(file: Path, lines: list[str]) -> list[list[str]]:
    """The columns of each line; ``UserError`` for words behind a label, where a name in two words may be meant."""
    mark = next((mark for mark in "\t,;" if lines and all(mark in line for line in lines)), "")
    if mark:
        try:  # each line by itself: a quote that is never closed would take all that follow along
            rows = [next(csv.reader([line], delimiter=mark, skipinitialspace=True)) for line in lines]
        except csv.Error as error:
            raise UserError(f"--val-labels {file} cannot be read as columns: {error}.") from error
        rows = [[part.strip() for part in row] for row in rows]
        return [[boxes[1] if (boxes := _BOXES.fullmatch(part)) else part for part in row] for row in rows]
    rows = [[part.strip('"') for part in line.split()] for line in lines]
    for line, row in zip(lines, rows, strict=True):
        if not all(map(_is_number, row[2:])):
            raise UserError(
                f"--val-labels {file}: {line!r} is more than a file's name and a label: put a tab or a comma between "
                "the two, in every line."
            )
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _by_name(file: Path, pairs: list[tuple[str, str]], source: Source) -> dict[int, str]:
    """{index: label}; ``UserError`` for a name that several images, or several labels, have."""
    index_of = {_stem(source.name(index)): index for index in range(len(source))}
    if len(index_of) < len(source):
        held = Counter(_stem(source.name(index)) for index in range(len(source)))
        if several := next((stem for stem, _ in pairs if held[stem] > 1), None):
            raise UserError(
                f"--val-labels {file} labels {several!r}, and {held[several]} images have that name without folder "
                "and endings: give a label a line, in the order of the sorted names."
            )
    label_by_index: dict[int, str] = {}
    for stem, label in pairs:
        if (index := index_of.get(stem)) is not None and label_by_index.setdefault(index, label) != label:
            raise UserError(
                f"--val-labels {file} gives {stem!r} the labels {label_by_index[index]!r} and {label!r}: leave one."
            )
    return label_by_index


def _json_pairs(file: Path, text: str) -> list[tuple[str, str]]:
    try:
        content: Any = parse_json(text)
    except ValueError as error:
        raise UserError(f"--val-labels {file} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"--val-labels {file} holds a {type(content).__name__}: give an object of files and labels.")
    pairs = []
    for key, value in content.items():
        pairs += [(_stem(str(one)), key) for one in value] if isinstance(value, list) else [(_stem(key), str(value))]
    return pairs


def _stem(name: str) -> str:
    return Path(name).name.partition(".")[0]
