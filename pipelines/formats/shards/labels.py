"""The classes of tar shards: numbers or names in their .cls members, or the tar files themselves, as ImageNet's are."""

from __future__ import annotations

import numpy as np

from fastvicreg.errors import UserError
from fastvicreg.pipelines.classes import numbered
from fastvicreg.pipelines.formats.hints import PageHints
from fastvicreg.pipelines.formats.shards import tarfiles
from fastvicreg.pipelines.formats.shards.layout import ShardLayout
from fastvicreg.pipelines.mapped import address_of


def addresses(layout: ShardLayout, start_N: np.ndarray) -> np.ndarray:
    """Where in memory the bytes lie that begin at ``start_N`` of their tar files."""
    return np.array([address_of(tar) for tar in layout.mapped], np.int64)[layout.shard_N] + start_N


def read_labels(layout: ShardLayout) -> tuple[np.ndarray, tuple[str, ...]]:
    """(label_N, int64, -1 where a sample has none; classes); ``UserError`` where some are numbers and some names."""
    label_N = np.full(len(layout), -1)
    start, size, kind = layout.label_N3.T
    if not (start >= 0).any():
        return by_tar(layout)
    ahead = PageHints(addresses(layout, start), size)
    names: dict[int, str] = {}
    numbers = 0
    for number, tar in enumerate(layout.mapped):
        index_S = np.flatnonzero((layout.shard_N == number) & (start >= 0))
        ahead(index_S)
        for index in index_S.tolist():
            member = tar[start[index] : start[index] + size[index]]
            extension = tarfiles.LABEL[kind[index]]
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
        return label_N, numbered(label_N)
    classes = tuple(sorted(set(names.values())))
    place = {name: at for at, name in enumerate(classes)}
    label_N[list(names)] = [place[name] for name in names.values()]
    return label_N, classes


def class_name(member: bytes | memoryview) -> str:
    """The class that a member names in words; "" where its bytes are no name, or a number that does not fit."""
    try:
        text = bytes(member).decode().strip()
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() and not text.lstrip("+-").isdecimal() else ""


def by_tar(layout: ShardLayout) -> tuple[np.ndarray, tuple[str, ...]]:
    """Each tar file as a class where all its images are named after it: n01440764.tar holds n01440764_10026.JPEG."""
    stems = [tar.stem for tar, _ in layout.files]
    none = np.full(len(layout), -1), ()
    if len(set(stems)) < 2 or len(set(stems)) < len(stems):
        return none
    for index, shard in enumerate(layout.shard_N.tolist()):
        name: str = layout.names[index]
        if not name.rpartition("/")[2].startswith(f"{stems[shard]}_"):
            return none
    classes = tuple(sorted(stems))
    return np.array([classes.index(stem) for stem in stems])[layout.shard_N], classes


def _refused(layout: ShardLayout, index: int, member: bytes | memoryview) -> UserError:
    return UserError(
        f"{layout.names[index]}: its class {bytes(member[:20])!r} is no number; write the tar files with class numbers."
    )
