"""The classes of tar shards: numbers or names in a member or a field of JSON, or the tar files themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from fastvicreg.errors import UserError
from fastvicreg.pipelines.classes import DIGITS, number_or_name, numbered, numbers_of
from fastvicreg.pipelines.formats.hints import PageHints
from fastvicreg.pipelines.formats.shards import tarfiles
from fastvicreg.pipelines.formats.shards.layout import ShardLayout
from fastvicreg.pipelines.mapped import address_of


def addresses(layout: ShardLayout, start_N: np.ndarray) -> np.ndarray:
    """Where in memory the bytes lie that begin at ``start_N`` of their tar files."""
    return np.array([address_of(tar) for tar in layout.mapped], np.int64)[layout.shard_N] + start_N


class Labels(NamedTuple):
    """Of N samples."""

    label_N: np.ndarray  # int64, -1 where a sample has none
    classes: tuple[str, ...]
    reason_by_index: dict[int, str]  # of samples to be left out, whose label was named and cannot be read


def read_labels(layout: ShardLayout) -> Labels:
    """The labels of all samples; ``UserError`` where nobody named them and some are numbers, some names."""
    if layout.members.named:
        return _named(layout)
    label_N = np.full(len(layout), -1)
    if not (layout.label_N3[:, 0] >= 0).any():
        return by_tar(layout)
    names: dict[int, str] = {}
    numbers = 0
    for index, member, kind in _read(layout):
        extension = tarfiles.LABEL[kind]
        try:
            label_N[index] = tarfiles.read_label(member, extension)
            numbers += 1
        except (ValueError, OverflowError):
            name = class_name(member) if extension == "cls" else ""
            if not name or numbers:
                raise _refused(layout, index, member) from None
            names[index] = name
        if names and numbers:
            index = min(names)
            raise _refused(layout, index, names[index].encode())
    if not names:
        return Labels(label_N, numbered(label_N), {})
    classes = tuple(sorted(set(names.values())))
    place = {name: at for at, name in enumerate(classes)}
    label_N[list(names)] = [place[name] for name in names.values()]
    return Labels(label_N, classes, {})


def _read(layout: ShardLayout) -> Iterator[tuple[int, memoryview, int]]:
    """(sample, bytes of its label's member, place of its extension in ``members.label``), tar file by tar file."""
    start, size, kind = layout.label_N3.T
    ahead = PageHints(addresses(layout, start), size)
    for number, tar in enumerate(layout.mapped):
        index_S = np.flatnonzero((layout.shard_N == number) & (start >= 0))
        ahead(index_S)
        for index in index_S.tolist():
            yield index, tar[start[index] : start[index] + size[index]], int(kind[index])


def _named(layout: ShardLayout) -> Labels:
    """Labels in the member that a person named: numbers where all are, else names, numbered in sorted order."""
    members = layout.members
    found: list[int | str] = [""] * len(layout)
    without: dict[int, str] = {}
    for index, member, kind in _read(layout):
        try:
            found[index] = label_in(member, members.label[kind], members.field)
        except ValueError as error:
            without[index] = f"sample {error}"
    if len(without) == len(layout):
        first = min(without)
        raise UserError(f"no sample in {layout.path} has a label: {layout.names[first]} is a {without[first]}.")
    label_N, classes = numbers_of([None if index in without else label for index, label in enumerate(found)])
    return Labels(label_N, classes, without)


def label_in(member: bytes | memoryview, extension: str, field: str = "") -> int | str:
    """The class number or name in a member's bytes, or in ``field`` of its JSON; ``ValueError`` where it has none."""
    if extension == "cls.i32":
        value: Any = tarfiles.read_label(member, extension)
    elif field:
        value = _field(member, extension, field)
    else:
        value = bytes(member).decode("utf-8", "replace").strip()
    where = f".{extension} {field}".strip()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        value = number_or_name(value)
    if value in ("", None):
        raise ValueError(f"whose {where} is empty")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"whose {where} is a {type(value).__name__}, no class")
    if isinstance(value, int) and not 0 <= value < 10**DIGITS:
        raise ValueError(f"whose {where} is below 0 or above all bounds")
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"whose {where} is no line of text")
    return value


def _field(member: bytes | memoryview, extension: str, field: str) -> Any:
    """The value of ``field``; its dots lead into inner objects where there is no field of the whole name."""
    try:
        value: Any = msgspec.json.decode(member)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError(f"whose .{extension} is no JSON") from None
    if isinstance(value, dict) and field in value:
        return value[field]
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"whose .{extension} has no {field}")
        value = value[part]
    return value


def class_name(member: bytes | memoryview) -> str:
    """The class that a member names in words; "" where its bytes are no name, or a number that does not fit."""
    try:
        text = bytes(member).decode().strip()
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() and not text.lstrip("+-").isdecimal() else ""


def by_tar(layout: ShardLayout) -> Labels:
    """Each tar file as a class where all its images are named after it: n01440764.tar holds n01440764_10026.JPEG."""
    stems = [tar.stem for tar, _ in layout.files]
    none = Labels(np.full(len(layout), -1), (), {})
    if len(set(stems)) < 2 or len(set(stems)) < len(stems):
        return none
    for index, shard in enumerate(layout.shard_N.tolist()):
        name: str = layout.names[index]
        if not name.rpartition("/")[2].startswith(f"{stems[shard]}_"):
            return none
    classes = tuple(sorted(stems))
    return Labels(np.array([classes.index(stem) for stem in stems])[layout.shard_N], classes, {})


def _refused(layout: ShardLayout, index: int, member: bytes | memoryview) -> UserError:
    return UserError(
        f"{layout.names[index]}: its class {bytes(member[:20])!r} is no number, as those before "
        "it are: --label cls takes all of them as names, and leaves out what is no name."
    )
