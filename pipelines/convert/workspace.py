"""Where an unfinished conversion lives: ``DST.partial``, one command's at a time, and how it becomes ``DST``."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.changes import difference, pack
from fastvicreg.pipelines.convert.journal import write_all
from fastvicreg.pipelines.manifest import manifest_path
from fastvicreg.pipelines.reading import unread
from fastvicreg.pipelines.unfinished import READY, is_being_put_in_place, partial_of

FILES = (".beton", ".tar", ".idx", ".gz", ".tgz", ".zip")
"""Endings that show that a file was meant where a folder is written."""


class Workspace:
    """A folder beside ``target`` that is kept when the conversion is interrupted and gone when it is complete."""

    def __init__(self, target: Path, command: Mapping[str, Any], names: bytes, *, replaces: bool = False) -> None:
        """Take the folder for ``command``, all that decides the written bytes; ``names`` are those of the samples.

        ``UserError`` where it holds another command's work, another process is at it or reads ``target``, or that
        exists and is not to be replaced, or added to where it is a folder.
        """
        self.target = target
        self.folder = partial_of(target)
        self._replaces = replaces
        self.folder.mkdir(exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._unread = ExitStack()
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another conversion is writing {target}: wait for it.") from None
            if replaces:
                self._unread.enter_context(unread(target))
            else:
                refuse_existing(target)  # again: another process may have completed it meanwhile
            self._claim(command, names)
        except BaseException:
            self.close()
            if os.path.lexists(target):
                sweep(target)
            raise

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def publish(self, manifest: bytes) -> None:
        """Give manifest and data, which is on the disk already, their final names."""
        if self._replaces:
            durable(self.folder / "manifest", manifest)
            durable(self.folder / READY, b"")
            sync_folder(self.folder)
            _put_in_place(self.target)
            return
        if self.data.is_dir():
            durable(manifest_path(self.data), manifest)
            sync_folder(self.data)
        else:
            durable(self.folder / "manifest", manifest)
            # The manifest first: at no time is there data that would be read unchecked.
            os.replace(self.folder / "manifest", manifest_path(self.target))
        os.rename(self.data, self.target)
        sync_folder(self.target.parent)
        shutil.rmtree(self.folder)

    def close(self) -> None:
        self._unread.close()
        os.close(self._lock)

    def _claim(self, command: Mapping[str, Any], names: bytes) -> None:
        note = self.folder / "command.json"
        if not note.exists():
            durable(self.folder / "names", pack(names))
            durable(self.folder / "command.draft", json.dumps(command, indent=1).encode())
            os.rename(self.folder / "command.draft", note)
            sync_folder(self.folder)
            return
        try:
            before = json.loads(note.read_bytes())
        except ValueError:
            before = {}
        if changed := difference(before, dict(command), self.folder / "names", names):
            raise UserError(
                f"{self.folder} holds the unfinished conversion of another command or of other files ({changed}): "
                "give the same again, or delete the folder."
            )


def finish_interrupted(target: Path) -> None:
    """Complete an addition to ``target`` that was interrupted when all was written.

    ``UserError`` where another process is at it, or reads ``target``.
    """
    if not is_being_put_in_place(target):
        return
    lock = os.open(partial_of(target) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with unread(target):
            _put_in_place(target)
    except BlockingIOError:
        raise UserError(f"another conversion is writing {target}: wait for it.") from None
    finally:
        os.close(lock)


def discard(target: Path) -> None:
    """Remove what an addition to ``target`` that came to nothing has left beside it."""
    shutil.rmtree(partial_of(target))


def _put_in_place(target: Path) -> None:
    """What lies ready beside ``target`` into its place; called again, it goes on where it was stopped."""
    folder = partial_of(target)
    data, manifest = folder / "data", folder / "manifest"
    if data.is_dir():
        for path in sorted(data.iterdir()):
            os.replace(path, target / path.name)
        sync_folder(target)
    elif data.exists():
        os.replace(data, target)
    if manifest.exists():
        os.replace(manifest, manifest_path(target))
    sync_folder(target.parent)
    shutil.rmtree(folder)


def refuse_target(source: Path, target: Path, ending: str) -> None:
    """``UserError`` where ``target`` cannot be written: it exists, lies in ``source``, has no folder, wrong ending.

    An empty ``ending`` stands for a folder, whose name may end in anything but what a file's does.
    """
    if ending and target.suffix != ending:
        raise UserError(
            f"{target} does not end in {ending}: name the file {target.stem or 'DATA'}{ending}, or give --format "
            "shards for a folder."
        )
    if not ending and target.suffix in FILES:
        raise UserError(
            f"{target} ends in {target.suffix}, and shards are written into a folder: name it {target.stem or 'DATA'}."
        )
    refuse_existing(target)
    if not target.parent.is_dir():
        raise UserError(f"the folder {target.parent} does not exist: make it first.")
    if source.is_dir() and target.parent.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} lies inside its own source {source}: write it elsewhere.")


def sweep(target: Path) -> None:
    """Remove what a kill between the last rename and the tidying after it has left beside a whole ``target``."""
    folder = partial_of(target)
    if not folder.is_dir() or (folder / "data").exists() or (folder / READY).exists():
        return
    with suppress(OSError):  # nobody may write here, or another process is at it
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)


def refuse_existing(target: Path) -> None:
    """``UserError`` where something has the final name already."""
    if os.path.lexists(target):
        sweep(target)
        raise UserError(f"{target} exists: delete it, or choose another name.")


def durable(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        write_all(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
