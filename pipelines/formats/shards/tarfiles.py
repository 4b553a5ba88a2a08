"""Tar shards as DALI and the webdataset library read them: what a sample's members are and what an index says.

``shard-000000.tar`` lies beside ``shard-000000.idx``. A sample is the members, one after another, whose names agree up
to the first dot: KEY.jpg, KEY.cls (the class number as text) and KEY.cls.i32 (the same in 4 bytes, little-endian).
The index is NVIDIA's ``wds2idx`` v1.2: a line a sample, "extension offset size name" a member. Tar: POSIX ustar.
"""

from __future__ import annotations

import re
import struct
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastvicreg.errors import DamagedError, UserError

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE
"""Bytes that a tar file is filled up to, after at least two empty blocks."""
VERSION = "v1.2"
IMAGE = ("jpg", "jpeg", "png", "webp", "avif", "jxl", "jp2", "bmp", "tif", "tiff", "gif", "ppm", "pgm")
LABEL = ("cls.i32", "cls")
"""Extensions, the one to be preferred first."""
EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
"""Member types that have no bytes, whatever size their header gives."""
LABELS = range(-(1 << 31), 1 << 31)

_LINE = re.compile(r"(?:(?:^| )\S+ [0-9]{1,18} [0-9]{1,18} \S+)+")
_I32 = struct.Struct("<i")
_SIZE, _CHECKSUM, _TYPE = slice(124, 135), slice(148, 154), 156
_HEADER = struct.pack(
    "100s8s8s8s12s12s8sc100s6s2s247x",
    *(b"", b"0000644", b"0000000", b"0000000", b"00000000000", b"00000000000", b"000000\0 ", b"0"),
    *(b"", b"ustar\0", b"00"),
)
_SUM = sum(_HEADER) + 8 * 0x20 - sum(_HEADER[148:156]) - sum(_HEADER[_SIZE])
"""Checksum without name and size; its own field counts as blanks."""


class Component(NamedTuple):
    """A member as an index tells of it."""

    extension: str
    start: int  # of its bytes in the tar file
    size: int
    name: str


class Table(NamedTuple):
    """Those S samples of an index that have the same K extensions in the same order."""

    place_S: np.ndarray  # int64, of the sample in the index
    extensions: tuple[str, ...]  # in lower case
    start_KS: np.ndarray  # int64, of the member's bytes in the tar file
    size_KS: np.ndarray  # int64
    names: list[tuple[str, ...]]  # K columns of S names

    def column(self, extensions: tuple[str, ...]) -> int | None:
        """The column of the first of ``extensions`` that these samples have, whole or as the last part of theirs."""
        return place_of(extensions, self.extensions)

    def samples(self) -> Iterator[tuple[int, list[Component]]]:
        """(place in the index, members) of each sample."""
        for at, place in enumerate(self.place_S.tolist()):
            columns = zip(self.extensions, self.start_KS[:, at].tolist(), self.size_KS[:, at].tolist(), strict=True)
            yield place, [Component(*column, names[at]) for column, names in zip(columns, self.names, strict=True)]


def place_of(wanted: tuple[str, ...], extensions: tuple[str, ...]) -> int | None:
    """Where in ``extensions`` the first of ``wanted`` stands, whole or as the last part of another; None: nowhere."""
    whole = (extensions.index(one) for one in wanted if one in extensions)
    ends = (at for one in wanted for at, own in enumerate(extensions) if own.endswith(f".{one}"))
    return next(whole, next(ends, None))


def shard_names(number: int) -> tuple[str, str]:
    """(tar, index) of the shard numbered ``number``."""
    return f"shard-{number:06d}.tar", f"shard-{number:06d}.idx"


def record_size(size: int) -> int:
    """Bytes that a sample takes in its shard, of an image of ``size`` bytes: three headers, the image, two labels."""
    return 5 * BLOCK + _up(size)


def tar_size(end: int) -> int:
    """Bytes of the whole tar file whose last sample ends at ``end``."""
    return -(-(end + 2 * BLOCK) // RECORD) * RECORD


def record(number: int, image: bytes | memoryview, label: int) -> tuple[bytes, bytes]:
    """What goes before and after the image's bytes; ``UserError`` where ``label`` does not fit 4 bytes."""
    if label not in LABELS:
        raise UserError(f"the class number {label} of sample {number} does not fit the 4 bytes of cls.i32.")
    text, key = b"%d" % label, b"%09d" % number
    after = (
        bytes(_up(len(image)) - len(image)),
        _header(key + b".cls", len(text)),
        text.ljust(BLOCK, b"\0"),
        _header(key + b".cls.i32", _I32.size),
        _I32.pack(label).ljust(BLOCK, b"\0"),
    )
    return _header(key + b".jpg", len(image)), b"".join(after)


def index_line(number: int, start: int, size: int, label: int) -> str:
    """The index's line of the sample whose record begins at ``start``, with an image of ``size`` bytes."""
    text = start + 2 * BLOCK + _up(size)
    return (
        f"jpg {start + BLOCK} {size} {number:09d}.jpg cls {text} {len(str(label))} {number:09d}.cls "
        f"cls.i32 {text + 2 * BLOCK} {_I32.size} {number:09d}.cls.i32\n"
    )


def index_text(lines: list[str]) -> bytes:
    """An index of these lines."""
    return f"{VERSION} {len(lines)}\n{''.join(lines)}".encode("utf-8", "surrogateescape")


def read_index(path: Path, text: bytes) -> list[Table]:
    """The samples that the index ``text`` of the file ``path`` lists, those of the same members together.

    ``DamagedError`` for text that is none of version 1.2, is cut short, or lists a key or an extension twice.
    """
    first, *lines = text.decode("utf-8", "surrogateescape").split("\n")
    version, _, count = first.partition(" ")
    if version != VERSION or not count.isdecimal():
        raise DamagedError(
            f"{path} is no index of version {VERSION} (it begins with {first[:20]!r}): make it anew with DALI's "
            f"`wds2idx {path.with_suffix('.tar')}`."
        )
    if lines.pop() or len(lines) != int(count):
        raise DamagedError(f"{path} is cut short or damaged: it announces {count} samples; {_anew(path)}.")
    for number, line in enumerate(lines, 2):
        if not _LINE.fullmatch(line):
            raise DamagedError(
                f"{path} is damaged in line {number} ({line[:40]!r}), or a member's name has a blank in it, which an "
                f"index cannot tell: rename that; else {_anew(path)}."
            )
    rows = [line.split(" ") for line in lines]
    keys = [key_of(row[3]) for row in rows]
    if len(set(keys)) < len(keys):
        twice = next(key for key, times in Counter(keys).items() if times > 1)
        raise DamagedError(
            f"{path} lists two samples of the key {twice!r}: every sample needs its own; delete the index where the "
            "members of a sample do not follow each other: they are then put together."
        )
    return _tables(path, rows)


def tables(path: Path, samples: list[list[Component]]) -> list[Table]:
    """The samples of ``path`` by their members' extensions, as ``read_index`` gives them."""
    return _tables(path, [[str(part) for component in sample for part in component] for sample in samples])


def _tables(path: Path, rows: list[list[str]]) -> list[Table]:
    places: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(tuple(row[::4]), []).append(place)
    return [_table(path, kinds, here, [rows[place] for place in here]) for kinds, here in places.items()]


def _table(path: Path, kinds: tuple[str, ...], places: list[int], rows: list[list[str]]) -> Table:
    extensions = tuple(kind.lower() for kind in kinds)
    if len(set(extensions)) < len(extensions):
        key = key_of(rows[0][3])
        raise DamagedError(f"{path} lists an extension of the key {key!r} twice: every member needs its own.")
    columns = list(zip(*rows, strict=True))
    start_KS, size_KS = (np.array([list(map(int, column)) for column in columns[at::4]], np.int64) for at in (1, 2))
    return Table(np.array(places), extensions, start_KS, size_KS, columns[3::4])


def key_of(name: str) -> str:
    """A member's name up to the first dot of its last part."""
    return name[: name.find(".", name.rfind("/") + 1)]


def read_label(data: bytes | memoryview, extension: str) -> int:
    """The class number in a member's bytes; ``ValueError`` where there is none."""
    if extension == "cls":
        return int(bytes(data))
    if len(data) != _I32.size:
        raise ValueError(f"{len(data)} bytes instead of {_I32.size}")
    return _I32.unpack(data)[0]


def meets_header(tar: memoryview, start: int, size: int) -> bool:
    """Whether the bytes at ``start`` follow the header of a regular member of ``size`` bytes."""
    field = bytes(tar[start - BLOCK + 124 : start - BLOCK + 136]).strip(b" \0")
    try:
        return tar[start - BLOCK + _TYPE] in b"0\0" and int(field, 8) == size
    except ValueError:
        return False


def member_at(tar: memoryview, start: int) -> tarfile.TarInfo | None:
    """The header of the member whose bytes begin at ``start``; None where there is no sound one before them."""
    try:
        found = tarfile.TarInfo.frombuf(bytes(tar[start - BLOCK : start]), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return found if found.size >= 0 else None


def is_member(found: tarfile.TarInfo | None, name: str, size: int) -> bool:
    """Whether ``found`` heads the regular member ``name`` of ``size`` bytes."""
    if found is None or not found.isreg() or found.size != size:
        return False
    # A longer name, or one that is not ASCII, may stand in another header before this one.
    return found.name == name or len(name) > 100 or not name.isascii()


def unlisted(tar: memoryview, components: list[Component]) -> Iterator[tuple[int, str]]:
    """(offset, name) of each regular member that is none of ``components``; "" for bytes that are no member at all.

    Links, folders and hidden files belong to no sample and are passed over, as the readers do.
    """
    at = 0
    for listed in [*sorted((c.start, c.size) for c in components), (_up(len(tar)) + BLOCK, 0)]:
        while at < listed[0] - BLOCK:
            found = member_at(tar, at + BLOCK)
            if found is None:
                if any(tar[at : at + BLOCK]):
                    yield at, ""
                    break
                at += BLOCK
                continue
            key = key_of(found.name)
            if found.isreg() and key and not key.endswith("/"):
                yield at, found.name
            at += BLOCK + (0 if found.type in EMPTY else _up(found.size))
        at = listed[0] + _up(listed[1])


def _header(name: bytes, size: int) -> bytes:
    block = bytearray(_HEADER)
    digits = b"%011o" % size
    block[: len(name)], block[_SIZE] = name, digits
    block[_CHECKSUM] = b"%06o" % (_SUM + sum(name) + sum(digits))
    return bytes(block)


def _up(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _anew(path: Path) -> str:
    return f"copy it again, or make it anew with DALI's `wds2idx {path.with_suffix('.tar')}`"
