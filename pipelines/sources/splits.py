"""Which of a dataset's folders and files are splits (train, val, test ...): one answer for every command.

Splits are recognised by name: folders ``train`` and ``validation`` in any case, one level or several below the path
given; folders such as ``seg_train`` and ``seg_test`` that differ in the split's name alone; ``.beton`` files, tar
shards and parquet files of one folder whose names hold ``-train-`` and ``-validation-``. What could be splits as well
as classes is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

from fastvicreg.errors import UserError
from fastvicreg.pipelines.fetch import is_remote
from fastvicreg.pipelines.formats.listing import Listing, holds_data, list_folder, path_exists

TRAIN = ("train", "training")
VALIDATION = ("val", "validation", "valid", "dev", "test", "testing")
"""The first of these that is there is taken for validation."""
DEPTH = 5
"""Folders below the path given in which splits are looked for: ILSVRC/Data/CLS-LOC/train is the third."""

_NAME = re.compile(rf"(?<![a-z])(?:{'|'.join((*TRAIN, *VALIDATION))})(?![a-z])")


class Part(NamedTuple):
    """One split: its name in lower case, and what ``open_source`` opens it by."""

    name: str
    path: Path  # a folder, a .beton file, or a pattern of tar files or tables


@dataclass(frozen=True)
class Splits:
    """What a path holds: ``parts``, or none where ``root`` is one dataset."""

    root: Path  # the path given, or the folder below it that holds the splits or the classes
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()  # what was taken or left out and may not be what was meant

    @property
    def train(self) -> Path:
        """The training data: the split of that name, else the whole."""
        return next((part.path for part in self.parts if part.name in TRAIN), self.root)

    @property
    def validation(self) -> Path | None:
        """The first of ``VALIDATION`` that is there."""
        found = {part.name: part.path for part in self.parts}
        return next((found[name] for name in VALIDATION if name in found), None)


def splits_of(path: str | Path) -> Splits:
    """The splits at or below ``path``; ``UserError`` where names do not tell splits from classes."""
    if is_remote(path):
        raise UserError(f"{path} is on another machine: fastvicreg convert {path} images.beton brings it here.")
    root = Path(path)
    if not path_exists(root) or not root.is_dir():
        return Splits(root)
    found = _at(root, list_folder(root), given=True)
    if found is not None:
        return found
    below = list(_below(root, DEPTH))
    if len(below) > 1:
        raise UserError(
            f"{root} holds several datasets with splits, such as {below[0].root} and {below[1].root}: give one of them."
        )
    if below:
        return _only(root, below[0])
    return Splits(*_one_level_down(root))


def find_splits(path: str | Path) -> tuple[Path, Path | None]:
    """(training data, validation data or None) at or below ``path``, as ``splits_of`` finds them."""
    found = splits_of(path)
    return found.train, found.validation


def one_dataset(path: str | Path, command: str) -> Path:
    """What ``path`` means where one dataset is asked for; ``UserError`` where it holds several splits."""
    found = splits_of(path)
    if len(found.parts) > 1:
        names = [f"{part.path.name}/" if part.path.is_dir() else part.path.name for part in found.parts]
        raise UserError(
            f"{found.root} holds {' and '.join(names[:2])}, {len(names)} datasets: {command} each by itself, such as "
            f"{found.parts[0].path}."
        )
    return found.train


def split_name(name: str) -> tuple[str, str] | None:
    """(split, the rest of the name), both in lower case, or None: "Seg_Train" is ("train", "seg_*")."""
    lower = name.lower()
    found = _NAME.findall(lower)
    return (found[0], _NAME.sub("*", lower)) if len(found) == 1 else None


def refuse_split_classes(classes: Iterable[str], where: Path) -> None:
    """``UserError`` where two of ``classes`` are the names of splits: no dataset has classes train and val."""
    groups = _groups(classes)
    for parts in groups.values():
        if _complete(parts):
            names = sorted(parts.values())
            raise UserError(
                f"{where} holds {names[0]}/ and {names[1]}/, which are splits and no classes: give one of them, such "
                f"as {where / names[0]}."
            )


def _groups(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """{rest of the name: {split: name}}; of two names for the same split ("Train", "train") the last counts."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        if (found := split_name(name)) is not None:
            groups.setdefault(found[1], {})[found[0]] = name
    return groups


def _complete(parts: Iterable[str]) -> bool:
    return any(name in TRAIN for name in parts) and any(name in VALIDATION for name in parts)


def _at(folder: Path, listing: Listing, *, given: bool = False) -> Splits | None:
    """The splits that lie in ``folder`` itself; what could be either is refused where the folder was ``given``.

    Folders count before tar files, and these before .beton files: who unpacks or converts often keeps both.
    """
    if listing.images:
        return None
    found = _folders(folder, listing, given=given)
    if found is not None or not (listing.tars or listing.betons or listing.tables):
        return found
    if listing.tars:
        return _shards(folder, listing.tars)
    if any(holds_data(folder / name) for name in listing.folders):
        return None
    return _betons(folder, listing.betons) if listing.betons else _shards(folder, listing.tables)


def _folders(folder: Path, listing: Listing, *, given: bool) -> Splits | None:
    groups = _groups(listing.folders)
    filled = [{k: n for k, n in parts.items() if holds_data(folder / n)} for parts in groups.values()]
    whole = [parts for parts in filled if _complete(parts)]
    if len(whole) > 1:
        first, second = (" and ".join(f"{name}/" for name in parts.values()) for parts in whole[:2])
        raise UserError(f"{folder} holds {first}, but also {second}: give --data and --val-data by themselves.")
    if whole:
        parts = whole[0]
        others = [n for n in listing.folders if n not in parts.values() and holds_data(folder / n)]
        notes = (f"{folder}: not read: {', '.join(f'{name}/' for name in others)}",) if others else ()
        return Splits(folder, _parts((name, folder / parts[name]) for name in parts), notes)
    return _lone(folder, listing, groups.get("*", {}), given=given)


def _lone(folder: Path, listing: Listing, named: dict[str, str], *, given: bool) -> Splits | None:
    """What folders called as splits mean that do not make a whole: train/ alone, or a class that bears such a name."""
    mine = [name for name in named.values() if holds_data(folder / name)]
    if not mine:
        return None
    others = [name for name in listing.folders if name not in named.values() and holds_data(folder / name)]
    if not others and any(name in TRAIN for name in named):
        train = next(split for split in named if split in TRAIN)
        return Splits(folder, _parts([(train, folder / named[train])]))
    if not others:
        if not given:
            return None
        raise UserError(
            f"{folder} holds {' and '.join(f'{name}/' for name in mine)} but no train/: give {folder / mine[0]} itself."
        )
    flat = all(list_folder(folder / name, to_first_image=True).images for name in (*mine, *others))
    if len(others) > 1 and flat:  # CIFAR-100 has a class of trains
        return None
    if not given:
        return None
    raise UserError(
        f"{folder} holds {mine[0]}/ beside {others[0]}/, which may be a split or a class: give {folder / mine[0]} for "
        f"the split, or rename {mine[0]}/ where it is a class."
    )


def _below(folder: Path, depth: int) -> Iterator[Splits]:
    """The splits in folders below ``folder``; of a folder that has some, none below it are looked for."""
    for name in list_folder(folder, to_first_image=True).folders:
        below = folder / name
        listing = list_folder(below, to_first_image=True)
        if listing.images:
            continue
        found = _at(below, listing)
        if found is not None and found.parts:
            yield found
        elif depth > 1 and found is None:
            yield from _below(below, depth - 1)


def _only(root: Path, found: Splits) -> Splits:
    """``found``, with a word on where; ``UserError`` where other images lie beside it."""
    place = root
    for step in found.root.relative_to(root).parts:
        others = [n for n in list_folder(place).folders if n != step and holds_data(place / n)]
        if others:
            raise UserError(
                f"{found.root} holds {' and '.join(f'{part.name}/' for part in found.parts)}, and {place} holds "
                f"{others[0]}/ too: give {found.root} for these splits."
            )
        place /= step
    return Splits(found.root, found.parts, (f"splits found in {found.root}", *found.notes))


def _one_level_down(root: Path) -> tuple[Path, tuple[Part, ...], tuple[str, ...]]:
    """(where the class folders or shards are, no parts, a word on it): ``root``, or the only folder with data in it."""
    place = root
    for _ in range(DEPTH):
        listing = list_folder(place, to_first_image=True)
        filled = () if listing.data else [name for name in listing.folders if holds_data(place / name)]
        if len(filled) != 1:
            many = bool(listing.tars or listing.betons or listing.tables) or len(filled) > 1
            return (place, (), (f"data found in {place}",)) if many and place != root else (root, (), ())
        place /= filled[0]
    return root, (), ()


def _shards(folder: Path, tars: tuple[str, ...]) -> Splits | None:
    """The tar files or tables of one folder by split, or None where their names tell of none."""
    by_split: dict[str, list[str]] = {}
    rest = []
    for name in tars:
        found = split_name(Path(name).stem)
        by_split.setdefault(found[0], []).append(name) if found else rest.append(name)
    if len(by_split) < 2:
        return None
    if rest:
        raise UserError(
            f"{folder} holds files of the splits {' and '.join(by_split)} beside {rest[0]}: give a pattern, such "
            f"as '{folder / _pattern(next(iter(by_split.values())), tars)}'."
        )
    return Splits(folder, _parts((split, folder / _pattern(names, tars)) for split, names in by_split.items()))


def _pattern(names: list[str], tars: Iterable[str]) -> str:
    """A pattern that matches these of ``tars`` alone."""
    stem = commonprefix([Path(name).stem for name in names]).rstrip("0123456789")  # noqa: RUF071  # character by character is meant
    pattern = f"{stem}*{Path(names[0]).suffix}"
    if {name for name in tars if fnmatchcase(name, pattern)} == set(names) and not set("[?*{") & set(stem):
        return pattern
    return f"{{{','.join(names)}}}"


def _betons(folder: Path, betons: tuple[str, ...]) -> Splits:
    by_split: dict[str, list[str]] = {}
    for name in betons:
        found = split_name(Path(name).stem)
        by_split.setdefault(found[0] if found else "", []).append(name)
    if len(betons) == 1 and len(by_split) == 1:
        return Splits(folder / betons[0], (), (f"data found in {folder / betons[0]}",))
    if "" in by_split or any(len(names) > 1 for names in by_split.values()):
        raise UserError(f"{folder} holds {len(betons)} .beton files ({', '.join(betons[:4])}): give one of them.")
    return Splits(folder, _parts((split, folder / names[0]) for split, names in by_split.items()))


def _parts(found: Iterable[tuple[str, Path]]) -> tuple[Part, ...]:
    order = (*TRAIN, *VALIDATION)
    return tuple(Part(name, path) for name, path in sorted(found, key=lambda entry: order.index(entry[0])))
