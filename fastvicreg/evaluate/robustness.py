"""The same classifier on other images, in ImageNet-R's and -A's layout (class folders) or ImageNet-C's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.evaluate import scores
from fastvicreg.evaluate.labels import by_name
from fastvicreg.evaluate.matching import matched
from fastvicreg.evaluate.subject import Classifier, ImageSubject
from fastvicreg.pipelines.formats.keys import ANY, Keys
from fastvicreg.pipelines.sources import has_keys, open_source


@dataclass(frozen=True)
class ImageSet:
    """Labelled images under the bank's numbers of their classes."""

    name: str
    where: str
    source: Source
    allowed_A: Tensor | None
    """The classes that come into question, where they are not all of the bank's."""


def open_sets(folder: str, classes: tuple[str, ...], *, to_rgb: str = "range", keys: Keys = ANY) -> list[ImageSet]:
    """The sets in ``folder``: one, or one for each corruption and severity where it is laid out as ImageNet-C.

    ``keys`` name image and label of a set in tar shards, as they do in the data that the classifier learns from.

    ``UserError`` where there are none, or their class folders are none of ``classes``.
    """
    found = _corruptions(Path(folder)) or [Path(folder)]
    sets = []
    for path in found:
        name = path.name if len(found) == 1 else f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
        image, label = keys if has_keys(path) else ANY
        source = open_source(path, to_rgb=to_rgb, image=image, label=label)
        numbers = by_name(classes, source.classes)
        if numbers is None:
            strange = next((one for one in source.classes if one not in set(classes)), None)
            what = f"{strange!r} is no class of the training data" if strange else "its images have no class folders"
            raise UserError(f"--robustness {path}: {what}: give class folders of the same names.")
        if len(numbers) < 2:
            raise UserError(
                f"--robustness {path}: all images are of one class, {source.classes[0]!r}, and any guess is right: "
                "give two classes or more."
            )
        sets.append(ImageSet(name, str(path), *matched(source, numbers, classes)))
    return sets


def _corruptions(root: Path) -> list[Path]:
    """Folders corruption/severity below ``root``; none where the inner ones are not called by numbers alone."""
    if not root.is_dir():
        raise UserError(f"--robustness {root} is no folder: give one of class folders, or ImageNet-C's.")
    below = [[inner for inner in one.iterdir() if inner.is_dir()] for one in sorted(root.iterdir()) if one.is_dir()]
    if not below or not all(inner and all(path.name.isdecimal() for path in inner) for inner in below):
        return []
    return [path for inner in below for path in sorted(inner, key=lambda path: int(path.name))]


def evaluate_sets(
    subject: ImageSubject,
    classifier: Classifier,
    setting: dict[str, object],
    folders: Sequence[Sequence[ImageSet]],
    told: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row a set, by the classifier's ranking of that ``setting``; a mean where a folder holds several sets."""
    rows = []
    for sets in folders:
        own = []
        for one in sets:
            told(f"{one.name}: {len(one.source):,} images")
            if classifier.encoder is None:
                features = subject.features_of(one.source, one.where)
            else:
                features = subject.extracted(classifier.encoder, one.source)
            ranked = classifier.rank(features.features_NF, one.allowed_A)
            chosen = next((rank for rank in ranked if rank.setting == setting), ranked[-1])
            if chosen.setting != setting:  # a bank of these classes alone may be too small for it
                told(f"{one.name}: by {chosen.setting}, since {setting} is not to be had there")
            top_MK = chosen.top_MK.cpu()
            answers_M = features.labels_N.cpu()
            choice = len(subject.classes) if one.allowed_A is None else len(one.allowed_A)
            figures = scores.accuracies(top_MK, answers_M, choice)
            own.append({"images_of": one.name, "images": len(answers_M), "classes": choice, **figures})
        rows += own
        if len(own) > 1:
            means = {name: sum(row[name] for row in own) / len(own) for name in ("accuracy", "top5") if name in own[0]}
            folder = Path(sets[0].where).parent.parent.name
            rows.append({"images_of": f"{folder}: mean of {len(own)} sets", **means})
    return rows
