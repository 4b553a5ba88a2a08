"""What the folders of a large dataset hold, kept in the cache folder, so that it opens at once the next time.

Of a folder whose device, inode and time of change are as they were when it was listed, the list is taken: who adds,
removes or renames an entry changes that time. A folder that had changed within ``RECENT`` seconds before it was listed
may have changed once more in the same moment, so that its list is not kept; nor is that of a folder with links, whose
targets may come and go without a trace in it.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_hexdigest, xxh3_128_digest

from fastvicreg.caches import cache_folder
from fastvicreg.pipelines.formats.listing import image_extensions
from fastvicreg.pipelines.passed import Passed

log = logging.getLogger(__name__)

WORTH_KEEPING = 10_000
"""Images of a dataset from which on its lists are kept."""
RECENT = 2.0
"""Seconds: more than the coarsest clock of a file system ticks in."""
_DIGEST = 16
State = tuple[int, int, int, int]
"""Device, inode, and times of change of entries and of the folder itself, in ns."""


class Entries(NamedTuple):
    """What a folder holds; paths relative to the dataset's root, sorted."""

    images: list[str]
    folders: list[str]
    passed: Passed


class _Kept(NamedTuple):
    state: State
    images: bytes  # separated by zeros
    folders: bytes
    counts: dict[str, int]
    first: dict[str, bytes]


class Listings:
    """The lists of the folders of ``root``, those of an earlier opening and those made since."""

    def __init__(self, root: Path) -> None:
        self._place = kept_at(root)
        self._before = _read(self._place)
        self._now: dict[bytes, _Kept] = {}
        self._new = False

    def get(self, folder: str, state: State) -> Entries | None:
        """The entries of ``folder`` where it has not changed since they were kept."""
        key = os.fsencode(folder)
        kept = self._before.get(key)
        if kept is None or tuple(kept.state) != state:
            return None
        self._now[key] = kept
        passed = Passed()
        passed.counts, passed.first = dict(kept.counts), {kind: os.fsdecode(path) for kind, path in kept.first.items()}
        return Entries(_split(kept.images), _split(kept.folders), passed)

    def put(self, folder: str, state: State, entries: Entries) -> None:
        """Keep these, which were listed after ``state`` was taken."""
        if time.time() - max(state[2:]) / 1e9 < RECENT:
            return
        images, folders = ("\0".join(names).encode("utf-8", "surrogateescape") for names in entries[:2])
        first = {kind: os.fsencode(path) for kind, path in entries.passed.first.items()}
        self._now[os.fsencode(folder)] = _Kept(state, images, folders, entries.passed.counts, first)
        self._new = True

    def save(self, images: int) -> None:
        """Write the lists of a dataset of so many ``images``, whole or not at all."""
        if images < WORTH_KEEPING or not (self._new or len(self._now) < len(self._before)):
            return
        data = msgspec.msgpack.encode(self._now)
        draft = None
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=self._place.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(xxh3_128_digest(data) + data)
            os.replace(draft, self._place)
        except OSError as error:  # a cache that cannot be written is no reason to stop
            log.info("what the folders hold is not kept (%s): the next opening lists them again.", error)
            if draft is not None:
                Path(draft).unlink(missing_ok=True)


def state_of(folder: Path) -> State:
    """To be taken before the folder is listed; ``OSError`` where it cannot be read."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def kept_at(root: Path) -> Path:
    """The file that holds the lists of ``root``, where there is one."""
    # Another Pillow may take other files for images.
    what = f"{root.resolve()}\0{sorted(image_extensions())}".encode("utf-8", "surrogateescape")
    return cache_folder() / "listings" / xxh3_64_hexdigest(what)


def _read(place: Path) -> dict[bytes, _Kept]:
    try:
        data = place.read_bytes()
        if xxh3_128_digest(data[_DIGEST:]) != data[:_DIGEST]:
            return {}
        return msgspec.msgpack.decode(data[_DIGEST:], type=dict[bytes, _Kept])
    except (OSError, msgspec.DecodeError):
        return {}


def _split(names: bytes) -> list[str]:
    return names.decode("utf-8", "surrogateescape").split("\0") if names else []
