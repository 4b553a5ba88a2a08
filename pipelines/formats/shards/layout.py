"""Where everything in tar shards lies: as their indices say, each checked against its tar file, or as a walk finds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines.formats.shards import tarfiles
from fastvicreg.pipelines.formats.shards.index import index_beside, members_of, walked
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
    label_N3: np.ndarray  # int64: start (-1: none), size, place of the extension in tarfiles.LABEL
    names: Paths  # "shard-000000.tar/000000000.jpg"
    index_hash: int  # XXH3-64 of all indices one after another
    without_image: tuple[tuple[str, ...], ...]  # (key, extensions ...) of each sample left out

    def __len__(self) -> int:
        return len(self.shard_N)


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


def read_layout(path: str | Path) -> ShardLayout:
    """Map the tar files, and check every index against the size of its own, its first and its last header.

    ``UserError`` where there are no shards of images, ``DamagedError`` where files are missing, cut short or do not
    belong together; each in one line that names the file.
    """
    path = Path(path)
    files: list[tuple[Path, Path | None]] = []
    mapped: list[memoryview] = []
    texts: list[bytes] = []
    rows: list[np.ndarray] = []
    names: list[bytes] = []
    left: list[tuple[str, ...]] = []
    for tar, part in _opened(path):
        index = index_beside(tar) if tar.is_file() else None
        try:
            text = b"" if index is None else index.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {index}: {error.strerror}.") from error
        if index is None:
            tables, text = walked(tar, part)
        else:
            tables = tarfiles.read_index(index, text)
        row_S5, members, without = _rows(tar, tables)
        if index is not None and len(row_S5):
            _check_index(tar, index, part, row_S5, members)
        files.append((tar, index))
        mapped.append(part)
        texts.append(text)
        rows.append(row_S5)
        names += [f"{tar.name}/{name}".encode("utf-8", "surrogateescape") for name in members]
        left += [(f"{tar.name}/{entry[0]}", *entry[1:]) for entry in without]
    if not names:
        found = f": the first of {len(left):,} has only {', '.join(left[0][1:])}" if left else ""
        raise UserError(f"no sample in {path} with an image{found}; give a folder of .tar files of images.")
    row_N5 = np.concatenate(rows)
    return ShardLayout(
        path,
        tuple(files),
        tuple(mapped),
        np.repeat(np.arange(len(files)), [len(row_S5) for row_S5 in rows]),
        row_N5[:, :2],
        row_N5[:, 2:],
        Paths(b"".join(names), np.cumsum([len(name) for name in names], dtype=np.uint64)),
        index_digest(*texts),
        tuple(left),
    )


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


def _rows(tar: Path, tables: list[tarfiles.Table]) -> tuple[np.ndarray, list[str], list[tuple[str, ...]]]:
    """(row_S5: start and size of the image, start, size and kind of the label; the images' names; what has none)."""
    samples = sum(len(table.place_S) for table in tables)
    row_S5, names = np.full((samples, 5), -1, np.int64), [""] * samples
    without: list[tuple[str, ...]] = []
    for table in tables:
        image, label, place_S = table.column(tarfiles.IMAGE), table.column(tarfiles.LABEL), table.place_S
        if image is None:
            without += [(tarfiles.key_of(name), *table.extensions) for name in table.names[0]]
            continue
        row_S5[place_S, 0], row_S5[place_S, 1], row_S5[place_S, 2:] = table.start_KS[image], table.size_KS[image], NONE
        if label is not None:
            row_S5[place_S, 2], row_S5[place_S, 3] = table.start_KS[label], table.size_KS[label]
            row_S5[place_S, 4] = next(
                at for at, one in enumerate(tarfiles.LABEL) if f".{table.extensions[label]}".endswith(f".{one}")
            )
        for place, name in zip(place_S.tolist(), table.names[image], strict=True):
            names[place] = name
    whole = row_S5[:, 0] != -1
    return row_S5[whole], [name for name, good in zip(names, whole.tolist(), strict=True) if good], without


def _check_index(tar: Path, index: Path, mapped: memoryview, row_S5: np.ndarray, names: list[str]) -> None:
    _check_places(tar, index, len(mapped), row_S5, names)
    for at in (0, -1):
        _check_header(tar, index, mapped, int(row_S5[at, 0]), int(row_S5[at, 1]), names[at])


def _check_places(tar: Path, index: Path, end: int, row_S5: np.ndarray, names: list[str]) -> None:
    for column, what in ((0, "image"), (2, "class")):
        start, size = row_S5[:, column], row_S5[:, column + 1]
        there = start != NONE[0]
        wrong = there & ((start < tarfiles.BLOCK) | (start % tarfiles.BLOCK != 0) | (size <= 0))
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
