"""Whether labels of a bank and of queries can give an accuracy that means something; if not, one line that says why."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

NAMED = 3
"""Classes that a line names before it counts the rest."""
LAYOUT = "give --data with train/ and val/ class folders, or labelled images as --val-data"


class Labelled(Protocol):
    """What has labels: a ``Source``, or features that somebody else computed."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...
    def label(self, index: int) -> int:
        """Class number, -1 where there is none."""
        ...


def obstacle(bank: Labelled, queries: Labelled | None, *, bank_where: str, queries_where: str) -> str | None:
    """Why ``queries`` cannot be classified by the labels of ``bank``; None where they can.

    An accuracy needs a label on every image, at least two classes on both sides, the same class behind the same
    number, and for each class that is asked for at least one image in the bank.
    """
    if queries is None:
        return f"{bank_where} has no validation images beside it: {LAYOUT}."
    for source, where in ((bank, bank_where), (queries, queries_where)):
        if bare := sum(source.label(index) < 0 for index in range(len(source))):
            return f"{bare:,} of the {len(source):,} images of {where} have no label: {LAYOUT}."
    if differ := mismatch(bank.classes, queries.classes, bank_where, queries_where):
        return differ
    held, asked = _counts(bank), _counts(queries)
    for counts, where in ((held, bank_where), (asked, queries_where)):
        if len(counts) < 2:
            only = _name(bank.classes, next(iter(counts), 0))
            return (
                f"all images of {where} are of one class, {only!r}, and any guess is right: give two classes or more."
            )
    if lacking := sorted(set(asked) - set(held)):
        names = _named([_name(bank.classes, label) for label in lacking])
        return f"{bank_where} has no image of {names}, which {queries_where} asks for: give images of every class."
    return None


def mismatch(bank: tuple[str, ...], queries: tuple[str, ...], bank_where: str, queries_where: str) -> str | None:
    """Why a number does not mean the same class on both sides; ``queries`` may lack the last classes of ``bank``.

    Numbers are no names: where either side has numbers alone, nothing speaks against the other's names.
    """
    if not bank or not queries or queries == bank[: len(queries)]:
        return None
    if len(queries) <= len(bank) and any(side == tuple(map(str, range(len(side)))) for side in (bank, queries)):
        return None
    extra, absent = [c for c in queries if c not in set(bank)], [c for c in bank if c not in set(queries)]
    found = [f"{_named(extra)} only in {queries_where}"] if extra else []
    found += [f"{_named(absent)} only in {bank_where}"] if absent else []
    return (
        f"the classes differ ({'; '.join(found) or 'in their order'}), and the same number means another class: "
        f"give both splits class folders of the same names."
    )


def by_name(classes: tuple[str, ...], queries: tuple[str, ...]) -> list[int] | None:
    """The numbers in ``classes`` of the classes of ``queries``, by name; None where one of them is not there.

    So images of some of the classes are classified by the labels of all: ImageNet-R and -A hold 200 of the 1,000.
    """
    number = {name: place for place, name in enumerate(classes)}
    if not queries or len(number) != len(classes) or not set(queries) <= set(number):
        return None
    return [number[name] for name in queries]


def too_few(source: Labelled, per_class: int) -> str | None:
    """Why ``source`` does not have ``per_class`` labels of every class."""
    label, least = min(_counts(source).items(), key=lambda item: (item[1], item[0]))
    if least >= per_class:
        return None
    return f"class {_name(source.classes, label)!r} has {least} training images: give {least} or less, or 0 for all."


def _counts(source: Labelled) -> Counter[int]:
    return Counter(source.label(index) for index in range(len(source)))


def _name(classes: tuple[str, ...], label: int) -> str:
    return classes[label] if label < len(classes) else str(label)


def _named(classes: list[str]) -> str:
    more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
    return ", ".join(map(repr, classes[:NAMED])) + more
