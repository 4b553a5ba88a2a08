"""Class numbers and names: the ones from the others, whatever a dataset has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIGITS = 12
"""Decimal digits that a class number has at most; a longer one is a name."""


def numbered(label_N: np.ndarray) -> tuple[str, ...]:
    """Classes named by number, where the labels can be class numbers at all."""
    low, high = int(np.min(label_N)), int(np.max(label_N))
    return tuple(map(str, range(high + 1))) if low >= 0 and high < len(label_N) else ()


def number_or_name(text: str) -> int | str:
    """A class as ``text`` has it: a number where it is one, else the name."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < DIGITS else text


def numbers_of(found: Sequence[int | str | None]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(label_N, int64, -1 for None; classes): numbers as they are, or names in sorted order where some are names."""
    if not any(isinstance(label, str) for label in found):
        label_N = np.array([-1 if label is None else label for label in found], np.int64)
        return label_N, numbered(label_N.clip(0)) if (label_N >= 0).any() else ()
    names = [None if label is None else str(label) for label in found]
    classes = tuple(sorted({name for name in names if name is not None}))
    place: dict[str | None, int] = {name: at for at, name in enumerate(classes)}
    return np.array([place.get(name, -1) for name in names], np.int64), classes
