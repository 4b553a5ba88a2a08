"""Files damaged at random, by a seed: cut, flipped, zeroed, repeated, reordered, or with parts of another file."""

from __future__ import annotations

import struct
import zlib
from random import Random

import numpy as np
from images import encoded, photo

SIDES = 100_000
"""Pixels of a bomb's sides, where its format can name so many."""


def truncate(data: bytes, chance: Random, donor: bytes) -> bytes:
    return data[: place(data, chance)]


def flip(data: bytes, chance: Random, donor: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8, 40))):
        changed[place(data, chance)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def zero(data: bytes, chance: Random, donor: bytes) -> bytes:
    at, length = place(data, chance), extent(data, chance)
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def duplicate(data: bytes, chance: Random, donor: bytes) -> bytes:
    at, length = place(data, chance), extent(data, chance)
    return data[: at + length] + data[at:]


def reorder(data: bytes, chance: Random, donor: bytes) -> bytes:
    length = extent(data, chance)
    first, second = sorted((place(data, chance), place(data, chance)))
    second = max(second, first + length)
    return (
        data[:first]
        + data[second : second + length]
        + data[first + length : second]
        + data[first : first + length]
        + data[second + length :]
    )


def splice(data: bytes, chance: Random, donor: bytes) -> bytes:
    at, length, other = place(data, chance), extent(data, chance), place(donor, chance)
    return data[:at] + donor[other : other + length] + data[at + length :]


WAYS = (truncate, flip, zero, duplicate, reorder, splice)


def mutated(data: bytes, chance: Random, donor: bytes) -> tuple[bytes, str]:
    """(``data`` damaged in one way, which is not what it was; the way's name)."""
    while True:
        way = chance.choice(WAYS)
        if (changed := way(data, chance, donor)) != data:
            return changed, way.__name__


def place(data: bytes, chance: Random) -> int:
    """An offset: mostly of a byte that means something, for files are padded with zeros; often near an end."""
    kind = chance.random()
    if kind < 0.2:
        return min(len(data) - 1, int(chance.expovariate(1 / 24)))
    if kind < 0.3:
        return max(0, len(data) - 1 - int(chance.expovariate(1 / 24)))
    if kind < 0.9 and len(there := np.flatnonzero(np.frombuffer(data, np.uint8))):
        return int(there[chance.randrange(len(there))])
    return chance.randrange(len(data))


def extent(data: bytes, chance: Random) -> int:
    """How many bytes: few or many."""
    return max(1, int(min(len(data), 1 << 16) ** chance.random()))


def bombs() -> dict[str, bytes]:
    """Small files that say that they are immense."""
    png, jpeg, webp = (bytearray(encoded(photo(1, 40, 30), kind)) for kind in ("PNG", "JPEG", "WEBP"))
    png[16:24] = struct.pack(">II", SIDES, SIDES)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    webp[26:30] = struct.pack("<HH", 16_383, 16_383)  # of a VP8 key frame, after its start code
    bmp = bytearray(encoded(photo(1, 40, 30), "BMP"))
    bmp[18:26] = struct.pack("<ii", SIDES, SIDES)
    return {"bomb.png": bytes(png), "bomb.jpg": bytes(jpeg), "bomb.webp": bytes(webp), "bomb.bmp": bytes(bmp)}
