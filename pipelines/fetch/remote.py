"""Files behind an address (https://, s3://, gs://, hf:// ...), through fsspec: their names, and ranges of their bytes.

Every request is repeated with growing pauses where it may succeed later, and one that brings nothing for ``STALL``
seconds counts as failed, so that no wait is without end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from fastvicreg.errors import UserError
from fastvicreg.pipelines.fetch.address import HUB, WEB, require_complete
from fastvicreg.pipelines.fetch.hub import HubRanges
from fastvicreg.pipelines.fetch.systems import (
    checksum,
    content_tag,
    open_system,
    pinned,
    reason,
    tells_of_other_content,
    within,
)
from fastvicreg.pipelines.fetch.wanted import is_data, is_wanted
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.patterns import braces

STALL = 60.0
"""Seconds that a request may take: of a range of ``download.CHUNK`` bytes."""
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each repetition."""
TAGS = ("ETag", "etag", "blob_id")
"""What file systems call that which changes with the content."""
TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated")
"""What file systems call the time of the last change."""
DESCRIBED = 8
"""Files that are asked about at once."""

Result = TypeVar("Result")


class RemoteFile(NamedTuple):
    """A file as the other side tells of it."""

    address: str  # as a person writes it
    path: str  # as its file system names it
    name: str  # relative to what was asked for; slashes part folders
    size: int
    state: str  # changes with the content, where the other side tells of that
    checksum: tuple[str, str] | None  # (algorithm of hashlib, hexadecimal digest)
    etag: str = ""  # stands for the very bytes: see ``systems.content_tag``


class Remote:
    """One file system."""

    def __init__(self, address: str, patience: float = 0.0) -> None:
        """``patience``: seconds in which what does not come is named; 0: after all of ``PAUSES``.

        ``UserError`` where the address is incomplete, there is no such protocol, or its package is missing.
        """
        require_complete(address)
        self.address = address
        self._protocol = address.partition("://")[0]
        self._patience = patience or math.inf
        self._timeout = min(STALL, self._patience / 4)
        self._system, self._path = open_system(address, self._timeout)
        self._hub = HubRanges(self._system) if self._protocol in HUB else None
        self._unmatched: set[str] = set()

    def files(self) -> list[RemoteFile]:
        """The files that the address names, or that lie below it, sorted; ``UserError`` where there are none."""
        self._system.invalidate_cache()  # fsspec gives the same one, with its lists, to each who asks
        found: dict[str, str] = {}
        for path in braces(self._path):
            found.update(self._named(path))
        if not found:
            raise UserError(
                f"nothing to read at {self.address}: give a .tar, .parquet or .beton, or a folder of these."
            )
        named = sorted(found.items())
        described = in_order(
            lambda at: self.described(*named[at]),
            range(len(named)),
            workers=DESCRIBED,
            chunk=1,
            name="fastvicreg-fetch",
        )
        return list(described)

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        """These bytes; ``UserError`` where they do not come, or others do."""

        def read() -> bytes:
            data = self._range(file, start, end)
            if len(data) == file.size and (start or end < file.size):
                raise UserError(f"{file.address}: the server gives no ranges of a file: download it by other means.")
            if len(data) != end - start:
                raise OSError(f"{len(data)} bytes came instead of {end - start}")
            return data

        return self._patiently(read, file.address)

    def require_same(self, file: RemoteFile) -> None:
        """``UserError`` where the file is not what it was when it was described."""
        self._system.invalidate_cache()
        now = self.described(file.path, file.name)
        if now.state != file.state:
            raise UserError(
                f"{file.address} has changed since it was opened (it was {file.state!r} and is {now.state!r}): the "
                "same command reads it anew."
            )

    def _range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """One request; by the file's tag where it has one, so that the bytes of another content do not come."""
        if not file.etag or file.path in self._unmatched:
            return self._call("cat_file", file.path, start=start, end=end)
        try:
            return self._call("cat_file", file.path, start=start, end=end, **pinned(self._protocol, file.etag))
        except Exception as error:  # each file system raises errors of its own library
            if not tells_of_other_content(self._protocol, error):
                raise
        self.require_same(file)
        self._unmatched.add(file.path)  # the same file for all that the server tells: it compares otherwise
        return self._call("cat_file", file.path, start=start, end=end)

    def _named(self, path: str) -> dict[str, str]:
        """{path: name} of the files that a path or a pattern stands for."""
        if any(sign in path for sign in "*["):
            matches = self._patiently(lambda: self._call("glob", path), self.address)
            return _below(self._base(path), matches)
        name = PurePosixPath(urlsplit(path).path if self._protocol in WEB else path).name
        if is_data(name):
            return {path: name}
        return _below(path.rstrip("/") + "/", self._patiently(lambda: self._call("find", path), self.address))

    @staticmethod
    def _base(pattern: str) -> str:
        """What all matches of a pattern begin with, up to a slash."""
        plain = min(pattern.find(sign) for sign in "*[" if sign in pattern)
        return pattern[: pattern.rfind("/", 0, plain) + 1]

    def described(self, path: str, name: str) -> RemoteFile:
        """What its server says of a file now."""
        address = path if "://" in path else f"{self._protocol}://{path}"
        info = self._patiently(lambda: self._call("info", path), address)
        size = info.get("size")
        if size is None:
            raise UserError(f"{address}: the server does not tell the file's size: download it by other means.")
        if info.get("partial") is False:
            raise UserError(f"{address}: the server gives no ranges of a file: download it by other means.")
        if info.get("type") == "directory":
            raise UserError(f"{address} is a folder that is named as a file: give {address}/*.")
        etag = next((str(info[key]).strip('"') for key in TAGS if info.get(key)), "")
        time_ = str(next((info[key] for key in TIMES if info.get(key)), ""))
        state = f"{size} {etag} {time_}".strip()
        tag = content_tag(self._protocol, info)
        return RemoteFile(address, path, name, int(size), state, checksum(info, etag), tag)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        if self._hub is not None and method == "cat_file":
            return self._hub.cat_file(*arguments, **named, timeout=self._timeout)
        if getattr(self._system, "async_impl", False):
            from fsspec.asyn import sync

            call = getattr(self._system, f"_{method}")
            return sync(self._system.loop, call, *arguments, timeout=self._timeout, **named)
        return within(self._timeout, lambda: getattr(self._system, method)(*arguments, **named))

    def _patiently(self, call: Callable[[], Result], what: str) -> Result:
        """What ``call`` gives, tried again after each of ``PAUSES``; ``UserError`` with its last reason."""
        pauses, tries, until = iter(PAUSES), 0, time.monotonic() + self._patience
        while True:
            tries += 1
            try:
                return call()
            except UserError:
                raise
            except Exception as error:  # each file system raises errors of its own library
                why, final = reason(self._protocol, error, self._timeout)
            if final:
                raise UserError(f"cannot read {what}: {why}.")
            pause = next(pauses, None)
            if pause is None or time.monotonic() + pause + self._timeout > until:
                count = f"{tries} {'try' if tries == 1 else 'tries'}"
                raise UserError(f"cannot read {what}: {why} ({count}): the same command continues where it stopped.")
            time.sleep(pause)


def _below(base: str, paths: Iterable[object]) -> dict[str, str]:
    """{path: name below ``base``} of those that are wanted."""
    names = {str(path): str(path).removeprefix(base) for path in paths}
    return {path: name for path, name in names.items() if is_wanted(name)}
