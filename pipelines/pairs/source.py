"""Samples of two members each: in tar shards by their endings, in a folder beside each other, or in two folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fastvicreg.contracts import ReadAhead, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.ahead import reading_in_order
from fastvicreg.pipelines.decode import DecodeError
from fastvicreg.pipelines.fetch.mirror import attach
from fastvicreg.pipelines.formats.absent import require_folder
from fastvicreg.pipelines.formats.keys import Keys
from fastvicreg.pipelines.formats.listing import image_extensions, list_folder, path_exists
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.formats.shards.tarfiles import key_of
from fastvicreg.pipelines.pairs.config import PairConfig, Side
from fastvicreg.pipelines.pairs.files import Files, sample_key
from fastvicreg.pipelines.pairs.modalities import Modality, build
from fastvicreg.pipelines.pairs.text import Text
from fastvicreg.pipelines.passed import Passed, notes_of
from fastvicreg.pipelines.patterns import is_pattern
from fastvicreg.pipelines.sources.splits import TRAIN, VALIDATION, splits_of
from fastvicreg.pipelines.sources.subset import SubsetSource
from fastvicreg.pipelines.to_rgb import parse_rule, rule_of

SHOWN = 3
"""Endings that a refusal names."""


class MemberSource:
    """One member of every sample, as a source of its own: ``modality`` makes its views, None stands for images."""

    def __init__(self, source: Source, modality: Modality | None) -> None:
        self._source = source
        self.modality = modality
        self.classes = source.classes
        self.to_rgb = rule_of(source)

    def __len__(self) -> int:
        return len(self._source)

    def encoded(self, index: int) -> bytes | memoryview:
        return self._source.encoded(index)

    def label(self, index: int) -> int:
        return self._source.label(index)

    def size(self, index: int) -> tuple[int, int]:
        return self._source.size(index)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def read_ahead(self, index_B: Tensor) -> None:
        """As the source itself does, where it does."""
        if isinstance(self._source, ReadAhead):
            self._source.read_ahead(index_B)


class PairedSource(MemberSource):
    """Both members of every sample; by itself it is a source of the first, with the labels of both."""

    def __init__(self, members: Sequence[MemberSource], passed: Passed, notes: tuple[str, ...]) -> None:
        first, second = members
        super().__init__(first._source, first.modality)
        self.members = first, second
        self.passed = passed
        self.notes = notes

    @property
    def images(self) -> Source | None:
        """The samples' images, as their own format's source; None where neither member is an image."""
        return self._source if self.modality is None else None

    @property
    def others(self) -> tuple[MemberSource, ...]:
        """The members that are no images."""
        return tuple(member for member in self.members if member.modality is not None)


def member_of(source: Source, branch: str = "a") -> Source:
    """Of pairs the member that branch "a" or "b" sees; any other source as it is."""
    return source.members["ab".index(branch)] if isinstance(source, PairedSource) else source


class _Found(NamedTuple):
    """The members of one side, by the samples' keys."""

    source: Source
    keys: list[str]

    @property
    def lies_at(self) -> tuple[object, str]:
        """Where the first of them is."""
        return getattr(self.source, "root", None), self.source.name(0)


def open_pairs(
    path: str | Path,
    config: PairConfig,
    *,
    to_rgb: str = "range",
    label: str = "",
    modalities: Sequence[Modality | None] | None = None,
) -> PairedSource:
    """The pairs at ``path``: a folder, a folder of tar shards, or a pattern of them.

    Labels are the shards' (``label`` names their member) or the folders' that the first members lie in. ``modalities``
    of another split make the views here too.

    ``UserError`` where there is nothing to read, and where samples lack a member and ``config`` does not skip them.
    """
    sides = config.parsed()
    if modalities is None:
        modalities = [None if side.modality == "image" else build(side.modality, config) for side in sides]
    found = [_members(Path(path), side, one, to_rgb, label) for side, one in zip(sides, modalities, strict=True)]
    chosen, passed = _matched(Path(path), sides, found, skip=config.unpaired == "skip")
    members = [
        MemberSource(one.source if at_N is None else SubsetSource(one.source, at_N), modality)
        for one, at_N, modality in zip(found, chosen, modalities, strict=True)
    ]
    # What a tar file lacks of a pair is known from the keys; what it lacks of labels only its source tells.
    own = getattr(found[0].source, "passed", Passed())
    for kind in own.counts:
        if "label" in kind:
            passed.counts[kind], passed.first[kind] = own.counts[kind], own.first[kind]
    # What pairs do without: labels, of which captions are none.
    notes = dict.fromkeys(note for one in found for note in notes_of(one.source) if "no labels among" not in note)
    return PairedSource(members, passed, tuple(notes))


def pair_splits(path: str | Path) -> tuple[Path, Path | None]:
    """(training pairs, validation pairs or None): folders or shards by their names, as ``sources.splits`` has them.

    Folders count whatever lies in them; only those directly in ``path`` are looked at.
    """
    root = Path(path)
    if is_pattern(root) or not path_exists(root) or not root.is_dir():
        return root, None
    listing = list_folder(root)
    if listing.tars:
        found = splits_of(root)
        return found.train, found.validation
    by_name = {name.lower(): root / name for name in listing.folders}
    train = next((by_name[name] for name in TRAIN if name in by_name), root)
    return train, next((by_name[name] for name in VALIDATION if name in by_name and train != root), None)


def captions_of(source: PairedSource) -> Iterator[str]:
    """All captions of a pair with text; samples that hold none are left for training to replace and count."""
    for member in source.members:
        if isinstance(member.modality, Text):
            ahead = reading_in_order(member)
            for index in range(len(member)):
                ahead(index)
                try:
                    yield from member.modality.captions(member.encoded(index))
                except (DecodeError, OSError):
                    continue


def _members(path: Path, side: Side, modality: Modality | None, to_rgb: str, label: str) -> _Found:
    endings = tuple(side.member.lower().lstrip(".").split(",")) if side.member else ()
    if _is_shards(path):
        wanted = endings or (() if modality is None else modality.endings)
        shards = ShardSource(path, parse_rule(to_rgb), Keys(",".join(wanted), label))
        attach(shards)
        return _Found(shards, [sample_key(key_of(shards.name(index))) for index in range(len(shards))])
    require_folder(path, "a folder of pairs, or tar shards of them")
    if label:
        raise UserError(f"--label {label} names a member of tar shards, and {path} is a folder: leave it out.")
    root = path / side.member if side.member and (path / side.member).is_dir() else path
    by_folder = root != path
    own = modality.endings if modality is not None else tuple(one.lstrip(".") for one in image_extensions())
    wanted = own if by_folder or not endings else endings
    source = Files(root, wanted, to_rgb)
    if not len(source):
        names = ", ".join(f".{one}" for one in wanted[:SHOWN]) + (" ..." if len(wanted) > SHOWN else "")
        there = f"; it holds {', '.join(source.endings[:SHOWN])}" if source.endings else ""
        raise UserError(f"--pair: no {side.modality} in {root}: no file ends in {names}{there}.")
    return _Found(source, source.keys)


def _is_shards(path: Path) -> bool:
    if is_pattern(path):
        return True
    if not path_exists(path):
        return False
    return bool(list_folder(path).tars) if path.is_dir() else path.suffix == ".tar"


def _matched(
    path: Path, sides: tuple[Side, Side], found: Sequence[_Found], *, skip: bool
) -> tuple[list[list[int] | None], Passed]:
    """For each side which of its members make the pairs, in the first side's order; None: all as they are."""
    passed = Passed()
    first, second = found
    if sides[0].modality == sides[1].modality and first.lies_at == second.lies_at:
        raise UserError(
            f"--pair: both {sides[0].modality} views are {first.lies_at[1]} in {path}: name what holds each, such as "
            "text=en text=de."
        )
    if first.keys == second.keys:
        return [None, None], passed
    place = {key: at for at, key in enumerate(second.keys)}
    both = [(at, place[key]) for at, key in enumerate(first.keys) if key in place]
    if not both:
        raise UserError(
            f"{path} holds {len(first.keys):,} x {sides[0].modality} and {len(second.keys):,} x {sides[1].modality} "
            f"and no pair: names up to their endings must agree, such as {first.keys[0]} and {second.keys[0]}."
        )
    here = set(first.keys)
    lone = [(sides[1], key) for key in first.keys if key not in place]
    lone += [(sides[0], key) for key in second.keys if key not in here]
    if lone and not skip:
        side, key = lone[0]
        raise UserError(
            f"{path}: {len(lone):,} of the {len(both) + len(lone):,} samples lack one of the pair ({key} has no "
            f"{side.modality}): add what is missing, or give --unpaired skip."
        )
    for side, key in lone:
        passed.add(f"sample without {side.modality}", key)
    return [[at for at, _ in both], [at for _, at in both]], passed
