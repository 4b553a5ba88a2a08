"""Labels of what was converted before, beside those that its source has now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.manifest import Manifest
from fastvicreg.pipelines.sources.labelled import class_name


class Relabelled(NamedTuple):
    """A sample that is converted under another class than its source gives it now; "" for no label."""

    name: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.name} {_in_words(self.was)} there, and {_in_words(self.now)} by this command"


def relabelled(source: Source, manifest: Manifest) -> Iterator[Relabelled]:
    """The samples of both, by name, whose classes differ: their names, or where these have none their numbers."""
    place = {name: at for at, name in enumerate(manifest.paths)}
    for index in range(len(source)):
        if (at := place.get(name := source.name(index))) is None:
            continue
        was = class_name(manifest.classes, int(manifest.label_N[at]))
        now = class_name(source.classes, source.label(index))
        if was != now:
            yield Relabelled(name, was, now)


def require_labels(source: Source, manifest: Manifest, target: object, *, renumbers: bool) -> None:
    """``UserError`` where an addition to ``target`` would lose a label, or not take one over.

    ``renumbers``: whether the samples of before get the labels of ``source``, which may so be other ones.
    """
    for one in relabelled(source, manifest):
        if not one.now:
            raise UserError(f"--append: {target}: {one}: give --val-labels or --label as it was converted.")
        if not renumbers:
            raise UserError(
                f"--append: {target}: {one}, and what is stored keeps its labels: give those of before, or convert to "
                "another name without --append."
            )


def _in_words(name: str) -> str:
    return f"is {name!r}" if name else "has no label"
