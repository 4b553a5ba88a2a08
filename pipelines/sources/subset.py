"""A part of a source under its own indices: evenly spread samples for a kNN bank, or the ones that have labels."""

from __future__ import annotations

from collections.abc import Sequence

from fastvicreg.contracts import Source
from fastvicreg.pipelines.pairs.modalities import modality_of
from fastvicreg.pipelines.to_rgb import rule_of


class SubsetSource:
    """The samples of ``source`` at ``indices``, in that order."""

    kind = "a part of a dataset"

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source = source
        self._indices = tuple(indices)
        self.classes = source.classes
        self.to_rgb = rule_of(source)
        self.modality = modality_of(source)

    def __len__(self) -> int:
        return len(self._indices)

    def encoded(self, index: int) -> bytes | memoryview:
        return self._source.encoded(self._indices[index])

    def label(self, index: int) -> int:
        return self._source.label(self._indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self._source.size(self._indices[index])

    def name(self, index: int) -> str:
        return self._source.name(self._indices[index])


def spread(source: Source, most: int) -> Source:
    """At most ``most`` samples of ``source``, evenly spaced over it (a class folder keeps its share)."""
    total = len(source)
    return source if total <= most else SubsetSource(source, [i * total // most for i in range(most)])
