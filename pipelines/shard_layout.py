"""Where everything in a folder of tar shards lies, as its indices say, each checked against its tar file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines import shards
from fastvicreg.pipelines.manifest import Paths, index_digest
from fastvicreg.pipelines.mapped import map_file
from fastvicreg.pipelines.patterns import expand, is_pattern

NONE = (-1, 0, 0)
"""Start, size and kind of a label that is not there."""


@dataclass(frozen=True)
class ShardLayout:
    """N samples in the order of the shards' names, then of their indices."""

    path: Path  # a folder, or a pattern of tar files
    files: tuple[tuple[Path, Path], ...]  # (tar, index)
    mapped: tuple[memoryview, ...]  # whole tar files, read-only
    shard_N: np.ndarray  # int64, place in ``files``
    image_N2: np.ndarray  # int64: start, size in bytes
    label_N3: np.ndarray  # int64: start (-1: none), size, place of the extension in shards.LABEL
    names: Paths  # "shard-000000.tar/000000000.jpg"
    index_hash: int  # XXH3-64 of all indices one after another

    def __len__(self) -> int:
        return len(self.shard_N)


def list_shards(path: Path) -> tuple[tuple[Path, Path], ...]:
    """(tar, index) pairs in the order of their names; none where the folder ``path`` holds neither.

    ``UserError`` where there is no index at all, ``DamagedError`` where one of a pair is missing.
    """
    if is_pattern(path):
        return tuple((tar, _index_beside(tar)) for tar in expand(path))
    folder = path
    names = os.listdir(folder)
    tars, indices = ({name[:-4] for name in names if name.endswith(ending)} for ending in (".tar", ".idx"))
    if tars and not indices:
        tar = folder / f"{min(tars)}.tar"
        raise UserError(f"{tar} has no index beside it: make one for each tar file with DALI's `wds2idx {tar}`.")
    for stem in sorted(tars ^ indices):
        tar, index = folder / f"{stem}.tar", folder / f"{stem}.idx"
        if stem in tars:
            raise DamagedError(f"{tar} has no index {index.name}: make it with DALI's `wds2idx {tar}`.")
        raise DamagedError(f"{tar} is missing, its index {index.name} is there: copy it again.")
    # By length first: shard 1,000,000 has a digit more.
    ordered = sorted(tars, key=lambda stem: (len(stem), stem))
    return tuple((folder / f"{stem}.tar", folder / f"{stem}.idx") for stem in ordered)


def _index_beside(tar: Path) -> Path:
    index = tar.with_suffix(".idx")
    if not index.is_file():
        raise UserError(f"{tar} has no index beside it: make one for each tar file with DALI's `wds2idx {tar}`.")
    return index


def read_layout(path: str | Path) -> ShardLayout:
    """Map the tar files and check every index against the size of its own, its first and its last header.

    ``UserError`` where there are no shards of JPEGs, ``DamagedError`` where files are missing, cut short or do not
    belong together; each in one line that names the file.
    """
    path = Path(path)
    files = list_shards(path)
    mapped: list[memoryview] = []
    texts: list[bytes] = []
    rows: list[np.ndarray] = []
    names: list[bytes] = []
    for tar, index in files:
        try:
            texts.append(index.read_bytes())
            mapped.append(map_file(tar))
        except OSError as error:
            raise UserError(f"cannot read {error.filename or tar}: {error.strerror}.") from error
        row_S5, members = _read_shard(tar, index, mapped[-1], texts[-1])
        rows.append(row_S5)
        names += [f"{tar.name}/{name}".encode("utf-8", "surrogateescape") for name in members]
    if not names:
        raise UserError(f"no sample in {path}: give a folder of .tar files with an .idx beside each.")
    row_N5 = np.concatenate(rows)
    return ShardLayout(
        path,
        files,
        tuple(mapped),
        np.repeat(np.arange(len(files)), [len(row_S5) for row_S5 in rows]),
        row_N5[:, :2],
        row_N5[:, 2:],
        Paths(b"".join(names), np.cumsum([len(name) for name in names], dtype=np.uint64)),
        index_digest(*texts),
    )


def _read_shard(tar: Path, index: Path, mapped: memoryview, text: bytes) -> tuple[np.ndarray, list[str]]:
    """(row_S5: start and size of the image, start, size and kind of the label; the images' names)."""
    tables = shards.read_index(index, text)
    samples = sum(len(table.place_S) for table in tables)
    row_S5, names = np.empty((samples, 5), np.int64), [""] * samples
    for table in tables:
        image, label, place_S = table.column(shards.IMAGE), table.column(shards.LABEL), table.place_S
        if image is None:
            raise UserError(
                f"{index}: the sample {shards.key_of(table.names[0][0])!r} has no .jpg member, only "
                f"{', '.join(table.extensions)}; shards of JPEGs are read."
            )
        row_S5[place_S, 0], row_S5[place_S, 1], row_S5[place_S, 2:] = table.start_KS[image], table.size_KS[image], NONE
        if label is not None:
            row_S5[place_S, 2], row_S5[place_S, 3] = table.start_KS[label], table.size_KS[label]
            row_S5[place_S, 4] = shards.LABEL.index(table.extensions[label])
        for place, name in zip(place_S.tolist(), table.names[image], strict=True):
            names[place] = name
    if samples:
        _check_places(tar, index, len(mapped), row_S5, names)
        for at in (0, -1):
            _check_header(tar, index, mapped, int(row_S5[at, 0]), int(row_S5[at, 1]), names[at])
    return row_S5, names


def _check_places(tar: Path, index: Path, end: int, row_S5: np.ndarray, names: list[str]) -> None:
    for column, what in ((0, "image"), (2, "class")):
        start, size = row_S5[:, column], row_S5[:, column + 1]
        there = start != NONE[0]
        wrong = there & ((start < shards.BLOCK) | (start % shards.BLOCK != 0) | (size <= 0))
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
    found = shards.member_at(mapped, start)
    if not shards.is_member(found, name, size):
        what = "no regular member begins" if found is None or found.name == name else f"{found.name} lies"
        raise DamagedError(
            f"{index} is not the index of {tar.name}: {what} at byte {start}, where {name} should; make it anew with "
            f"DALI's `wds2idx {tar}`."
        )
