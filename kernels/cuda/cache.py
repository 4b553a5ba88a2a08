"""Compiled code kept on disk: a private directory of files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from fastvicreg.caches import cache_folder
from fastvicreg.errors import UserError


def directory() -> Path:
    """This user's own directory of compiled code, made with mode 0700 where missing; a temporary one without a home.

    What lies in it is run on the device: ``UserError`` where another user owns it or may write to it, or where it
    cannot be made.
    """
    folder = cache_folder() / "cubins"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise UserError(f"cannot keep compiled kernels in {folder}: {error.strerror}; set XDG_CACHE_HOME.") from error
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{folder} is no directory of its own: remove it, or set XDG_CACHE_HOME.")
    if os.name == "posix":
        if status.st_uid != os.getuid():
            raise UserError(f"{folder} belongs to user {status.st_uid}, not to this one: set XDG_CACHE_HOME.")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UserError(f"{folder} can be written by other users: chmod 700 it, or set XDG_CACHE_HOME.")
    return folder


def read(name: str) -> bytes | None:
    """What ``write`` kept under that name; None where there is nothing."""
    try:
        return (directory() / name).read_bytes()
    except FileNotFoundError:
        return None


def write(name: str, content: bytes) -> None:
    """Keep ``content`` under that name; another process that writes the same is not disturbed."""
    folder = directory()
    try:
        descriptor, draft = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(draft, folder / name)
        except BaseException:
            os.unlink(draft)
            raise
    except OSError as error:
        raise UserError(f"cannot keep compiled kernels in {folder}: {error.strerror}; set XDG_CACHE_HOME.") from error
