"""One remote file onto this disk: ranges read ahead by threads, continued where it stopped, checked at its end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from fastvicreg.errors import UserError
from fastvicreg.pipelines.fetch.remote import Remote, RemoteFile
from fastvicreg.pipelines.ordered import in_order

CHUNK = 8 << 20
"""Bytes a request."""
AHEAD = 4
"""Requests at once; up to twice as many ranges wait in memory."""


def download(remote: Remote, file: RemoteFile, place: Path, on_bytes: Callable[[int], None]) -> None:
    """Write ``file`` to ``place``, which appears when it is whole; ``on_bytes`` gets the bytes that came.

    A part that an interrupted call left is continued, unless the file has changed since. ``UserError`` where it cannot
    be read, or its checksum is not the one that the other side tells.
    """
    part, state = place.with_name(f"{place.name}.part"), place.with_name(f"{place.name}.state")
    place.parent.mkdir(parents=True, exist_ok=True)
    if not state.exists() or state.read_text() != file.state:
        part.unlink(missing_ok=True)
        state.write_text(file.state)
    with part.open("ab") as out:
        start = out.tell() // CHUNK * CHUNK
        out.truncate(start)
        on_bytes(start)
        first, chunks = start // CHUNK, -(-file.size // CHUNK)

        def read(number: int) -> bytes:
            return remote.read(file, number * CHUNK, min(file.size, (number + 1) * CHUNK))

        with closing(in_order(read, range(first, chunks), workers=AHEAD, chunk=1, name="fastvicreg-fetch")) as parts:
            for data in parts:
                out.write(data)
                out.flush()
                on_bytes(len(data))
        os.fsync(out.fileno())
    if file.checksum is not None and (found := _digest(part, file.checksum[0])) != file.checksum[1]:
        part.unlink()
        raise UserError(
            f"{file.address} came with the {file.checksum[0]} {found}, and {file.checksum[1]} was announced: the same "
            "command fetches it again."
        )
    os.replace(part, place)
    state.unlink()


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
