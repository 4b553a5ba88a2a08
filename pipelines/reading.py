"""Who reads converted data: nothing is added to it meanwhile, and nobody begins to read what is being added to.

Both hold ``flock`` on its manifest, readers together and an addition alone. The operating system lets go of it, however
a process ends, so that nothing stale is left behind. Where a file system keeps no locks nothing is held.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastvicreg.errors import UserError
from fastvicreg.pipelines.manifest import manifest_path
from fastvicreg.pipelines.patterns import expand, is_pattern


class Reading:
    """Hold converted data against additions, until ``close``, until nobody has it, or until this process ends.

    Whoever reads data takes it first: what was opened before may have been added to by then.
    """

    def __init__(self, *data: str | Path) -> None:
        """``data`` are held as by ``hold``."""
        self._held: list[int] = []
        self._end = weakref.finalize(self, _let_go, self._held)
        self.hold(*data)

    def hold(self, *data: str | Path) -> None:
        """Hold these too; ``UserError`` where one is being added to, when nothing is held any more.

        Of a pattern the folders of its files are held. What has no manifest is not held: it cannot be added to.
        """
        assert self._end.alive, "closed"
        for path in data:
            for own in _folders(path) if is_pattern(path) else (path,):
                with suppress(OSError):  # elsewhere, or without a manifest
                    self._hold(own)

    def _hold(self, path: str | Path) -> None:
        manifest = manifest_path(path)
        while True:
            self._held.append(os.open(manifest, os.O_RDONLY | os.O_CLOEXEC))
            if not _locked(self._held[-1], fcntl.LOCK_SH):
                self.close()
                raise UserError(f"{path} is being added to at this moment: wait for convert --append.")
            if os.path.samestat(os.fstat(self._held[-1]), os.stat(manifest)):
                return
            os.close(self._held.pop())  # an addition has put another in its place since it was opened

    def close(self) -> None:
        """Let others add to the data."""
        self._end()


def _folders(pattern: str | Path) -> dict[Path, None]:
    """Of the files that ``pattern`` names, each once; none where it names none."""
    try:
        return dict.fromkeys(path.parent for path in expand(pattern))
    except UserError:
        return {}  # whoever opens it says what is wrong with it


def _let_go(held: list[int]) -> None:
    while held:
        os.close(held.pop())


@contextmanager
def unread(target: Path) -> Iterator[None]:
    """Nobody reads ``target`` meanwhile. ``UserError`` naming who does so already."""
    handle = _opened(manifest_path(target))
    try:
        if handle is not None and not _locked(handle, fcntl.LOCK_EX):
            raise UserError(
                f"{target} is being read by {_readers(handle)}: wait for its end, or convert to another name without "
                "--append."
            )
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _opened(path: Path) -> int | None:
    """For writing where that is allowed: NFS locks no other descriptor for one process alone."""
    for mode in (os.O_RDWR, os.O_RDONLY):
        with suppress(OSError):
            return os.open(path, mode | os.O_CLOEXEC)
    return None


def _locked(handle: int, kind: int) -> bool:
    """Whether nobody else holds it; True also where the file system keeps no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _readers(handle: int) -> str:
    """The processes that hold this file's lock, as far as the system tells."""
    status = os.fstat(handle)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found = []
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place:
                found.append(fields[4])
    return f"process {' and '.join(sorted(set(found)))}" if found else "another process"
