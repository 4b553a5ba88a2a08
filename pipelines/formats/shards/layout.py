"""Where everything in tar shards lies: as their indices say, each checked against its tar file, or as a walk finds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines.formats.keys import ANY, Keys
from fastvicreg.pipelines.formats.shards import tarfiles
from fastvicreg.pipelines.formats.shards.index import Effort, index_beside, members_of, walked
from fastvicreg.pipelines.formats.shards.keys import Members, chosen
from fastvicreg.pipelines.manifest import Paths, index_digest
from fastvicreg.pipelines.mapped import map_file
from fastvicreg.pipelines.patterns import expand, is_pattern

NONE = (-1, 0, 0)
"""Start, size and kind of a label that is not there."""


@dataclass(frozen=True)
class ShardLayout:
    """N samples in the order of the shards' names, then of their indices."""

    path: Path  # a folder, a tar file, or a pattern of them
    files: tuple[tuple[Path, Path | None], ...]  # (tar, its index or None where it was walked)
    mapped: tuple[memoryview, ...]  # whole tar files, read-only
    shard_N: np.ndarray  # int64, place in ``files``
    image_N2: np.ndarray  # int64: start, size in bytes
    label_N3: np.ndarray  # int64: start (-1: none), size, place of the extension in members.label
    place_N: np.ndarray  # int64, of the sample in its own index
    names: Paths  # "shard-000000.tar/000000000.jpg"
    index_hash: int  # XXH3-64 of all indices one after another
    members: Members
    left_out: tuple[tuple[str, str], ...]  # (why, key) of each sample left out
    effort: Effort  # of walking those without an index

    def __len__(self) -> int:
        return len(self.shard_N)

    def without(self, reason_by_index: Mapping[int, str]) -> ShardLayout:
        """The layout with these samples left out, each for its reason."""
        if not reason_by_index:
            return self
        keep_N = np.ones(len(self), bool)
        keep_N[list(reason_by_index)] = False
        names = [self.names[index].encode("utf-8", "surrogateescape") for index in np.flatnonzero(keep_N).tolist()]
        return replace(
            self,
            shard_N=self.shard_N[keep_N],
            image_N2=self.image_N2[keep_N],
            label_N3=self.label_N3[keep_N],
            place_N=self.place_N[keep_N],
            names=_paths(names),
            left_out=(*self.left_out, *((why, self.names[index]) for index, why in reason_by_index.items())),
        )


class Rows(NamedTuple):
    """The S samples of one tar file that have all they need."""

    row_S6: np.ndarray  # int64: start and size of the image; start, size and kind of the label; place in the index
    names: list[str]  # of the images
    left_out: list[tuple[str, str]]  # (why, key) of the others


def list_shards(path: Path) -> list[Path]:
    """The tar files that ``path`` names, in the order of their names: of a folder, or of the folders in it.

    ``DamagedError`` where an index has no tar file.
    """
    if is_pattern(path):
        return expand(path)
    if path.is_file():
        return [path]
    names = os.listdir(path)
    tars = {name for name in names if name.endswith(".tar") and not name.startswith(".")}
    for index in sorted(name for name in names if name.endswith(".idx")):
        tar = index if index.endswith(".tar.idx") else f"{index[:-4]}.tar"
        if tar.removesuffix(".idx") not in tars:
            raise DamagedError(f"{path / tar} is missing, its index {index} is there: copy it again.")
    # By length first: shard 1,000,000 has a digit more.
    own = sorted(tars, key=lambda name: (len(name), name))
    if own:
        return [path / name for name in own]
    below = (path / name for name in sorted(names) if (path / name).is_dir() and not name.startswith((".", "_")))
    return [tar for folder in below for tar in sorted(folder.glob("*.tar"), key=lambda tar: (len(tar.name), tar.name))]


def read_layout(path: str | Path, keys: Keys = ANY) -> ShardLayout:
    """Map the tar files, and check every index against the size of its own, its first and its last header.

    ``UserError`` where there are no shards of images, or none of the members that ``keys`` name; ``DamagedError`` where
    files are missing, cut short or do not belong together; each in one line that names the file.
    """
    path = Path(path)
    opened = [(tar, index_beside(tar) if tar.is_file() else None, part) for tar, part in _opened(path)]
    effort = Effort()
    kinds = ([table.extensions for table in _tables(*one, effort)[0]] for one in opened)
    members = chosen(keys, kinds, path)
    texts: list[bytes] = []
    rows: list[Rows] = []
    for tar, index, part in opened:  # one after another: the tables of all would take several times the layout
        tables, text = _tables(tar, index, part, effort)
        texts.append(text)
        rows.append(_rows(tar, tables, members))
        if index is not None and rows[-1].names:
            _check_index(tar, index, part, rows[-1])
    left = tuple(entry for row in rows for entry in row.left_out)
    names = [
        f"{tar.name}/{name}".encode("utf-8", "surrogateescape")
        for (tar, _, _), row in zip(opened, rows, strict=True)
        for name in row.names
    ]
    if not names:
        why = f": the first of {len(left):,}, {left[0][1]}, is a {left[0][0]}" if left else ""
        raise UserError(f"no sample in {path} with an image{why}; give a folder of .tar files of images.")
    row_N6 = np.concatenate([row.row_S6 for row in rows])
    return ShardLayout(
        path,
        tuple((tar, index) for tar, index, _ in opened),
        tuple(part for _, _, part in opened),
        np.repeat(np.arange(len(opened)), [len(row.row_S6) for row in rows]),
        row_N6[:, :2],
        row_N6[:, 2:5],
        row_N6[:, 5],
        _paths(names),
        index_digest(*texts),
        members,
        left,
        effort,
    )


def _tables(
    tar: Path, index: Path | None, mapped: memoryview, effort: Effort | None = None
) -> tuple[list[tarfiles.Table], bytes]:
    """(samples, the text of their index) of one tar file."""
    if index is None:
        return walked(tar, mapped, effort)
    try:
        text = index.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {index}: {error.strerror}.") from error
    return tarfiles.read_index(index, text), text


def _paths(names: list[bytes]) -> Paths:
    return Paths(b"".join(names), np.cumsum([len(name) for name in names], dtype=np.uint64))


def _opened(path: Path) -> list[tuple[Path, memoryview]]:
    """(name, content) of every tar file, those inside a tar file of tar files too, as ImageNet's training data is."""
    found: list[tuple[Path, memoryview]] = []
    for tar in list_shards(path):
        try:
            mapped = map_file(tar)
        except OSError as error:
            raise UserError(f"cannot read {error.filename or tar}: {error.strerror}.") from error
        first = next(members_of(tar, mapped), None) if index_beside(tar) is None else None
        if first is None or first.extension != "tar":
            found.append((tar, mapped))
            continue
        for inner in members_of(tar, mapped):
            if inner.extension == "tar":
                found.append((tar / inner.name, mapped[inner.start : inner.start + inner.size]))
    return found


def _rows(tar: Path, tables: list[tarfiles.Table], members: Members) -> Rows:
    samples = sum(len(table.place_S) for table in tables)
    row_S6, names = np.full((samples, 6), -1, np.int64), [""] * samples
    left_out: list[tuple[str, str]] = []
    for table in tables:
        image, label, place_S = table.column(members.image), members.label_of(table), table.place_S
        if image is None or (label is None and members.named):
            why = _lacking(table, members, image)
            left_out += [(why, f"{tar.name}/{tarfiles.key_of(name)}") for name in table.names[0]]
            continue
        row_S6[place_S, 0], row_S6[place_S, 1], row_S6[place_S, 2:5] = table.start_KS[image], table.size_KS[image], NONE
        row_S6[place_S, 5] = place_S
        if label is not None:
            column, kind = label
            row_S6[place_S, 2], row_S6[place_S, 3] = table.start_KS[column], table.size_KS[column]
            row_S6[place_S, 4] = kind
        for place, name in zip(place_S.tolist(), table.names[image], strict=True):
            names[place] = name
    whole = row_S6[:, 0] != -1
    return Rows(row_S6[whole], [name for name, good in zip(names, whole.tolist(), strict=True) if good], left_out)


def _lacking(table: tarfiles.Table, members: Members, image: int | None) -> str:
    """What the samples of ``table`` lack."""
    only = ", ".join(f".{one}" for one in table.extensions)
    if image is None:
        what = "an image" if members.image == tarfiles.IMAGE else " or ".join(f".{one}" for one in members.image)
    else:
        what = f"the label {' or '.join(f'.{one}' for one in members.label)}"
    return f"sample without {what}, only {only}"


def _check_index(tar: Path, index: Path, mapped: memoryview, rows: Rows) -> None:
    row_S6, names = rows.row_S6, rows.names
    _check_places(tar, index, len(mapped), row_S6, names)
    for at in (0, -1):
        _check_header(tar, index, mapped, int(row_S6[at, 0]), int(row_S6[at, 1]), names[at])


def _check_places(tar: Path, index: Path, end: int, row_S6: np.ndarray, names: list[str]) -> None:
    for column, what in ((0, "image"), (2, "class")):
        start, size = row_S6[:, column], row_S6[:, column + 1]
        there = start != NONE[0]
        wrong = there & ((start < tarfiles.BLOCK) | (start % tarfiles.BLOCK != 0) | (size < (what == "image")))
        if wrong.any():
            at = int(wrong.argmax())
            raise DamagedError(
                f"{index} is damaged: the {what} of {names[at]} cannot be {size[at]} bytes at byte {start[at]}; "
                f"make it anew with DALI's `wds2idx {tar}`."
            )
        beyond = there & (start + size > end)
        if beyond.any():
            at = int(beyond.argmax())
            raise DamagedError(
                f"{tar} is cut short, or {index.name} is another tar file's: the {what} of {names[at]} would be "
                f"{size[at]} bytes at byte {start[at]}, the file ends at {end}; copy both again."
            )


def _check_header(tar: Path, index: Path, mapped: memoryview, start: int, size: int, name: str) -> None:
    found = tarfiles.member_at(mapped, start)
    if not tarfiles.is_member(found, name, size):
        what = "no regular member begins" if found is None or found.name == name else f"{found.name} lies"
        raise DamagedError(
            f"{index} is not the index of {tar.name}: {what} at byte {start}, where {name} should; make it anew with "
            f"DALI's `wds2idx {tar}`."
        )
