"""Class numbers and names: the ones from the others, whatever a dataset has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIGITS = 12
"""Decimal digits that a class number has at most; a longer one is a name."""


def numbered(label_N: np.ndarray) -> tuple[str, ...]:
    """Classes named by number, where the labels can be class numbers at all; -1 is a sample without one."""
    low, high = int(np.min(label_N)), int(np.max(label_N))
    return tuple(map(str, range(high + 1))) if low >= -1 and 0 <= high < len(label_N) else ()


def unlabelled_in_words(label_N: np.ndarray, classes: tuple[str, ...]) -> str:
    """ "3 of the 40 images have no label", where others have one, or labels that are no class numbers; else ""."""
    missing, total = int(np.count_nonzero(label_N < 0)), len(label_N)
    if classes:
        return f"{missing:,} of the {total:,} images {'has' if missing == 1 else 'have'} no label" if missing else ""
    low, high = int(np.min(label_N)), int(np.max(label_N))
    if low >= -1 and high < 0:
        return ""
    return f"no labels: {low} to {high} are no class numbers, which begin at 0 and are less than the images ({total:,})"


def number_or_name(text: str) -> int | str:
    """A class as ``text`` has it: a number where it is one, else the name."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < DIGITS else text


def numbers_of(found: Sequence[int | str | None]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(label_N, int64, -1 for None; classes): numbers as they are, or names in sorted order where some are names."""
    if not any(isinstance(label, str) for label in found):
        label_N = np.array([-1 if label is None else label for label in found], np.int64)
        return label_N, numbered(label_N)
    names = [None if label is None else str(label) for label in found]
    classes = tuple(sorted({name for name in names if name is not None}))
    place: dict[str | None, int] = {name: at for at, name in enumerate(classes)}
    return np.array([place.get(name, -1) for name in names], np.int64), classes
