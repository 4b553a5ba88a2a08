"""A dataset as plain files on this disk: what is remote is fetched, compressed tar files unpacked, the rest linked."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fastvicreg.errors import UserError
from fastvicreg.pipelines.fetch.address import is_remote, require_complete
from fastvicreg.pipelines.fetch.download import download
from fastvicreg.pipelines.fetch.remote import Remote, RemoteFile
from fastvicreg.pipelines.fetch.unpack import unpack
from fastvicreg.pipelines.fetch.wanted import is_archive, is_data, is_wanted, unpacked_name
from fastvicreg.pipelines.formats.listing import (
    BETON_ENDINGS,
    FEW_ENTRIES,
    FEW_FOLDERS,
    ending_of,
    is_file,
    is_folder,
    is_image,
    is_shown,
    scan,
)
from fastvicreg.pipelines.patterns import expand, is_pattern

LOCK = ".lock"
"""Name of the file that makes a folder ours: what else lies in it is deleted."""
Told = Callable[[int, int, int], None]
"""(files done, of, bytes that came)."""


def needs_copy(source: str | Path) -> bool:
    """Whether ``source`` cannot be read where it lies: it is remote, a compressed tar file, or a place of such files.

    Archives beside images or a ``.beton`` are what these were made of. ``UserError`` for an incomplete address.
    """
    if is_remote(source):
        require_complete(str(source))
        return True
    names = [name for _, name in _local(Path(source))]
    others = any(is_image(name) or ending_of(name) in BETON_ENDINGS for name in names)
    return any(map(is_archive, names)) and not others


def local_copy(source: str | Path, folder: Path, told: Told = lambda done, total, size: None) -> Path:
    """The files of ``source`` in ``folder``, as plain tar files, parquet files or ``.beton``; the path to open.

    Called again it goes on where it was stopped; of several processes one works, and the others wait. ``UserError``
    where there is nothing, the disk has no room, or a file cannot be read; ``DamagedError`` for a damaged archive.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).exists():
        raise UserError(f"{folder} holds other files, and {source} would be brought there: move it away.")
    remote = Remote(str(source)) if is_remote(source) else None  # before there is a folder for it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            placed = _unpack(Path(source), folder, told) if remote is None else _fetch(remote, folder, told)
            for path in folder.rglob("*"):
                if is_data(path.name) and path not in placed:  # of another source, or not there any more
                    path.unlink()
    except OSError as error:
        raise UserError(f"cannot bring {source} to {folder}: {error.strerror or error}.") from error
    data = [path for path in placed if is_data(path.name)]
    return data[0] if len(data) == 1 else folder


def _local(source: Path) -> Iterator[tuple[Path, str]]:
    """(file, its name below the source) of a file, a pattern, or a folder and the first folders in it."""
    if is_pattern(source):
        files = expand(source)
        base = os.path.commonpath([path.parent for path in files])
        yield from ((path, os.path.relpath(path, base)) for path in files)
    elif source.is_file():
        yield source, source.name
    elif source.is_dir():
        yield from ((path, path.name) for path in _files(source))
        below = (entry for entry in scan(source) if is_shown(entry.name) and is_folder(entry))
        for entry in itertools.islice(below, FEW_FOLDERS):
            yield from ((path, f"{entry.name}/{path.name}") for path in _files(Path(entry.path)))


def _files(folder: Path) -> list[Path]:
    """Files among the first entries of ``folder``; all of them where these are archives."""
    entries = scan(folder)
    found = [Path(entry.path) for entry in itertools.islice(entries, FEW_ENTRIES) if is_file(entry)]
    if any(is_archive(str(path)) for path in found):
        found += [Path(entry.path) for entry in entries if is_file(entry)]
    return sorted(found)


def _unpack(source: Path, folder: Path, told: Told) -> set[Path]:
    """The plain files of a local source, in ``folder``."""
    found = [entry for entry in _local(source) if is_wanted(entry[1])]
    placed: set[Path] = set()
    for done, (path, name) in enumerate(found):
        told(done, len(found), 0)
        place = folder / name
        if not is_archive(name):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(path.resolve())
        else:
            place = place.with_name(unpacked_name(place.name))
            status = path.stat()
            if place not in placed:  # else it lies unpacked beside its archive
                with _whole(place, f"{path.resolve()} {status.st_size} {status.st_mtime_ns}") as wanted:
                    if wanted:
                        unpack(path, place)
        placed.add(place)
    told(len(found), len(found), 0)
    return placed


def _fetch(remote: Remote, folder: Path, told: Told) -> set[Path]:
    """The plain files of a remote source, in ``folder``."""
    files = remote.files()
    placed: set[Path] = set()
    came = 0

    def on_bytes(size: int) -> None:
        nonlocal came
        came += size
        told(len(placed), len(files), came)

    for number, file in enumerate(files):
        place = safe_place(file, folder)
        plain = place.with_name(unpacked_name(place.name)) if is_archive(place.name) else place
        with _whole(plain, f"{file.address} {file.state}") as wanted:
            if wanted:
                _require_room(folder, sum(other.size for other in files[number:]), remote.address)
                download(remote, file, place, on_bytes)
                if plain != place:
                    unpack(place, plain)
                    place.unlink()
            else:
                on_bytes(file.size)
        placed.add(plain)
    told(len(files), len(files), came)
    return placed


@contextlib.contextmanager
def _whole(place: Path, state: str) -> Iterator[bool]:
    """Gives whether ``place`` has to be made, and notes afterwards that it was, from a file in this ``state``."""
    note = place.with_name(f"{place.name}.fetched")
    if place.exists() and note.exists() and note.read_text() == state:
        yield False
        return
    place.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
    yield True
    note.write_text(state)


def safe_place(file: RemoteFile, folder: Path) -> Path:
    """Where in ``folder`` the file lies; ``UserError`` for a name that leads out of it."""
    parts = [part for part in file.name.split("/") if part]
    if ".." in parts or not parts:
        raise UserError(f"{file.address} has a name that leads out of its folder: give another address.")
    return folder.joinpath(*parts)


def _require_room(folder: Path, size: int, address: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = sum(path.stat().st_size for path in folder.rglob("*.part"))
    free = shutil.disk_usage(folder).free
    if size - partial > free:
        needs, has = f"{size / 1e9:,.1f} GB", f"{free / 1e9:,.1f} GB"
        raise UserError(f"{address} needs {needs} in {folder}, where {has} are free: make room, or name fewer files.")
