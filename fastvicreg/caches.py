"""Where this user's caches lie: the platform's folder, or a temporary one where there is no home that can be written.

A container with a read-only root, or run by a user who is in no password file, has neither a home nor a package folder
to write to; numba's compiled code and the embedded images then go to the temporary folder, and it is said once.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from platformdirs import user_cache_path

log = logging.getLogger(__name__)


def own_folder() -> Path | None:
    """Where the platform has this user's caches; None for one without a home."""
    try:
        folder = user_cache_path("fastvicreg")
    except RuntimeError:  # newer versions of platformdirs
        return None
    # For earlier ones it is called "~" then, and would lie wherever the program was started.
    return folder if folder.is_absolute() else None


def cache_folder() -> Path:
    """This user's cache folder, which exists and can be written; a temporary one where theirs cannot."""
    folder = own_folder()
    if folder is not None and _writable(folder):
        return folder
    why = (
        "the cache folder of a user without a home cannot be written"
        if folder is None
        else f"the cache folder {folder} cannot be written"
    )
    return _temporary(why, "XDG_CACHE_HOME")


def njit(*signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``numba.njit`` whose compiled code is cached, in a temporary folder where it can lie nowhere else."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(*signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
        folder = _temporary("numba can write its compiled code neither beside the package nor into a home",
                            "NUMBA_CACHE_DIR")  # fmt: skip
        numba.config.CACHE_DIR = str(folder / "numba")  # type: ignore[attr-defined]
        return numba.njit(*signature, cache=True, **options)(function)

    return decorate


@cache
def _temporary(why: str, variable: str) -> Path:
    """A temporary folder of this user's own: the same in later processes, unless another user has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"fastvicreg-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or folder.is_symlink() or status.st_mode & 0o022:
            raise PermissionError(f"{folder} is another user's")
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="fastvicreg-"))
    log.warning("%s: using %s; %s names another folder.", why, folder, variable)
    return folder


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
