"""A converted dataset together with the files of a source that it lacks, as one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import eq

import numpy as np

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.prepare import Sample, Stored
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.manifest import Manifest, digest
from fastvicreg.pipelines.passed import Passed, Passing, notes_of
from fastvicreg.pipelines.to_rgb import rule_of

NONE = -1


class ExtendedSource:
    """The samples of ``source`` that ``stored`` lacks, and where ``whole`` those stored too.

    Where ``source`` holds all that is stored, a whole one has its order and its classes; else what is stored comes
    first, and classes keep their numbers, the new ones behind them. ``replaced`` are samples, by their place in the
    manifest, that a whole one takes from ``source`` all the same: {place: index there}.
    """

    def __init__(
        self,
        source: Source,
        stored: BetonSource | ShardSource,
        manifest: Manifest,
        *,
        whole: bool,
        replaced: Mapping[int, int],
    ) -> None:
        self._source, self._stored, self._manifest = source, stored, manifest
        self.whole = whole
        self.to_rgb = rule_of(source)
        self.notes = notes_of(source)
        self.passed = source.passed if isinstance(source, Passing) else Passed()
        place = {name: index for index, name in enumerate(manifest.paths)}
        old = [place.get(source.name(index), NONE) for index in range(len(source))]
        self.new = old.count(NONE)
        self.replaced = len(replaced)
        self.absent = len(manifest) - len({index for index in old if index != NONE})
        new = [(NONE, index) for index, at in enumerate(old) if at == NONE]
        if whole and not self.absent:
            self._places = [(NONE if at in replaced else at, index) for index, at in enumerate(old)]
            self.classes = source.classes
        else:
            before = [(NONE, replaced[at]) if at in replaced else (at, NONE) for at in range(len(manifest))]
            self._places = before + new if whole else new
            self.classes = _joined(manifest, source)
        number = {name: at for at, name in enumerate(self.classes)}
        self._number = np.array([number[name] for name in source.classes], np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def encoded(self, index: int) -> bytes | memoryview:
        return self._source.encoded(self._places[index][1])

    def label(self, index: int) -> int:
        stored, own = self._places[index]
        if own == NONE:
            return int(self._manifest.label_N[stored])
        label = self._source.label(own)
        return int(self._number[label]) if 0 <= label < len(self._number) else label

    def size(self, index: int) -> tuple[int, int]:
        return self._source.size(self._places[index][1])

    def name(self, index: int) -> str:
        stored, own = self._places[index]
        return self._manifest.paths[stored] if own == NONE else self._source.name(own)

    def prepared(self, index: int) -> Sample | None:
        """The sample as it is stored; None where it is new, or its bytes have changed and the source has it."""
        at, own = self._places[index]
        if at == NONE:
            return None
        manifest, stored = self._manifest, self._stored
        try:
            payload = stored.stored(at)
            if digest(payload) == int(manifest.hash_N[at]):
                kind = Stored.RAW if stored.is_raw(at) else Stored.KEPT
                width, height = int(manifest.width_N[at]), int(manifest.height_N[at])
                return Sample(kind, payload, width, height, self.label(index), int(manifest.hash_N[at]), "")
            why = f"its bytes in {stored.path} have changed, and the source does not have it"
        except OSError as error:
            why = error.strerror or str(error)
        return Sample(Stored.SKIPPED, b"", 0, 0, self.label(index), 0, why) if own == NONE else None

    @property
    def same(self) -> bool:
        """Whether there is nothing to be added or renumbered."""
        if self.new or self.replaced:
            return False
        labels = (self.label(index) for index in range(len(self)))
        stored = (int(self._manifest.label_N[at]) for at, _ in self._places)
        return not self.whole or (self.classes == self._manifest.classes and all(map(eq, labels, stored)))

    def notes_on(self, target: object) -> Iterator[str]:
        """What a person should know of an addition to ``target``."""
        there = len(self._manifest)
        if self.whole:
            again = f"{self.replaced:,} were replaced, the other " if self.replaced else "the "
            yield f"{self.new:,} new samples; {again}{there - self.replaced:,} of before were taken as they were"
        else:
            yield f"{self.new:,} new samples in shards of their own, behind the {there:,} of before"
        if self.absent and self.whole:
            yield (
                f"{self.absent:,} samples of {target} are not in the source any more, and stay: what is stored comes "
                "first, so that the order is not a whole conversion's"
            )


def _joined(manifest: Manifest, source: Source) -> tuple[str, ...]:
    """The classes of before under their numbers, then the source's new ones in sorted order."""
    before, new = manifest.classes, source.classes
    if all(classes == tuple(map(str, range(len(classes)))) for classes in (before, new)):
        return max(before, new, key=len)
    if not before and (manifest.label_N >= 0).any():
        raise UserError(
            f"--append: the labels of before are numbers alone, and the new classes have names ({new[0]} ...)."
        )
    return (*before, *sorted(set(new) - set(before)))
