"""Which members of a sample are its image and its class: as WebDatasets usually have them, or as a person says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastvicreg.errors import UserError
from fastvicreg.pipelines.formats.keys import Keys
from fastvicreg.pipelines.formats.shards import tarfiles

SHOWN = 8
"""Extensions that an error names."""
Kind = tuple[str, ...]
"""The extensions of a sample's members."""
_SEPARATOR = re.compile(r"[,;]")


class Members(NamedTuple):
    """Extensions, the one to be preferred first."""

    image: tuple[str, ...] = tarfiles.IMAGE
    label: tuple[str, ...] = tarfiles.LABEL
    field: str = ""
    """Of a JSON object in the label's member; dots lead into inner objects."""
    named: bool = False
    """Whether a person named the label: a sample without it is left out."""
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Extensions of members that are neither, among them perhaps the label."""

    def label_of(self, table: tarfiles.Table) -> tuple[int, int] | None:
        """(column of the label in ``table``, place of its extension in ``label``), or None."""
        column = table.column(self.label)
        if column is None:
            return None
        own = f".{table.extensions[column]}"
        return column, next(place for place, one in enumerate(self.label) if own.endswith(f".{one}"))


def chosen(keys: Keys, kinds: Iterable[Sequence[Kind]], path: Path) -> Members:
    """What ``keys`` mean for samples of these ``kinds``, tar file by tar file, of which no more are read than needed.

    ``--image`` is an extension (``jpg``, ``input.jpg``) or several, the preferred one first. ``--label`` is one too, or
    ``json:FIELD``; a word that is no member's extension is a field of the samples' ``.json``. ``UserError`` where no
    sample has such a member.
    """
    image = _listed(keys.image) or tarfiles.IMAGE
    label, colon, field = keys.label.partition(":")
    seen: dict[Kind, None] = {}
    notes: tuple[str, ...] = ()
    found: Members | None = None
    has_image = not keys.image
    for part in kinds:
        seen.update(dict.fromkeys(part))
        notes = notes or (() if keys.image else _ambiguous(part, path))
        has_image = has_image or _any(part, image)
        found = found or _labelled(label, field, part, guess=not colon)
        if found and has_image:
            break
    if not has_image:
        raise UserError(f"--image {keys.image}: no sample in {path} has such a member, only {_extensions(seen)}.")
    if found is None:
        raise UserError(f"--label {keys.label}: no sample in {path} has such a member, only {_extensions(seen)}.")
    if found.named and found.label[0].rpartition(".")[2] == "json" and not found.field:
        raise UserError(f"--label {keys.label}: name a field of the JSON too, such as {label}:label.")
    if found.field and not colon:
        notes += (f"{path}: the labels are the field {found.field!r} of each sample's .json",)
    others = {one: None for kind in seen for one in kind if not _any([(one,)], (*tarfiles.IMAGE, *tarfiles.LABEL))}
    return found._replace(image=image, notes=notes, others=tuple(others))


def _labelled(label: str, field: str, kinds: Sequence[Kind], *, guess: bool) -> Members | None:
    """What ``label`` means for samples of these kinds, or None."""
    if not label:
        return Members()
    if _any(kinds, _listed(label)):
        return Members(label=_listed(label), field=field, named=True)
    return Members(label=("json",), field=label, named=True) if guess and _any(kinds, ("json",)) else None


def _any(kinds: Iterable[Kind], wanted: tuple[str, ...]) -> bool:
    return any(tarfiles.place_of(wanted, kind) is not None for kind in kinds)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lstrip(".").lower() for part in _SEPARATOR.split(text) if part.strip())


def _extensions(kinds: Iterable[Kind]) -> str:
    names = list(dict.fromkeys(f".{extension}" for kind in kinds for extension in kind))
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def _ambiguous(kinds: Sequence[Kind], path: Path) -> tuple[str, ...]:
    """A word on samples that have several images, where some have."""
    for kind in kinds:
        first = tarfiles.place_of(tarfiles.IMAGE, kind)
        others = [one for one in kind if one.rpartition(".")[2] in tarfiles.IMAGE]
        if first is not None and len(others) > 1:
            rest = ", ".join(f".{one}" for one in others if one != kind[first])
            return (f"{path}: the images are the members .{kind[first]}, not {rest} (--image names another)",)
    return ()
