"""The samples of remote files by ranges of their bytes: read ahead by threads, a bounded number of them kept here."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from fastvicreg.errors import UserError
from fastvicreg.pipelines.fetch.kept import Kept
from fastvicreg.pipelines.fetch.remote import Remote, RemoteFile
from fastvicreg.pipelines.manifest import digest

REQUESTS = 16
"""At once: small ranges wait for the other side more than for the line."""
JOINED = 64 << 10
"""Bytes between two samples that are read along rather than asked for apart."""
MOST = 8 << 20
"""Bytes of a request that joins several samples."""
LATE = 32
"""Batches after which what was read ahead for one, and was not asked for, is dropped."""
RECHECK = 300.0
"""Seconds after which it is asked again whether a file is still the same."""


class Request(NamedTuple):
    """One range of a file, the samples in it, and who waits for them."""

    file: int
    start: int
    end: int
    samples: list[int]
    futures: list[Future[bytes]]


class RangedSamples:
    """Random access to N samples of ``files``; any number of threads may read."""

    def __init__(
        self,
        remote: Remote,
        files: Sequence[RemoteFile],
        file_N: np.ndarray,
        start_N: np.ndarray,
        size_N: np.ndarray,
        kept: Kept | None,
        expected_hash: Callable[[int], int | None] = lambda index: None,
    ) -> None:
        """``file_N``, ``start_N``, ``size_N``: where each sample lies; ``expected_hash``: XXH3-64 where it is known."""
        self._expected_hash = expected_hash
        self._remote, self._files, self._kept = remote, files, kept
        self._file_N, self._start_N, self._size_N = (part.astype(np.int64) for part in (file_N, start_N, size_N))
        self._lock = threading.Lock()
        self._coming: dict[int, tuple[int, Future[bytes]]] = {}  # by sample: the call that asked for it, and its bytes
        self._calls = 0
        self._asked: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._threads = 0
        self._broken: UserError | None = None
        self._same = [time.monotonic()] * len(files)  # when each was known to be the same

    def read(self, index: int) -> memoryview:
        """The sample's bytes; ``UserError`` where they do not come, or the file has changed."""
        if self._kept is not None and (data := self._kept.get(index)) is not None:
            return memoryview(data)
        with self._lock:
            _, future = self._coming.pop(index, (0, None))
        if future is not None:
            return memoryview(future.result())
        start = int(self._start_N[index])
        request = Request(int(self._file_N[index]), start, start + int(self._size_N[index]), [index], [])
        return memoryview(self._fetch(request)[0])

    def ahead(self, index_B: np.ndarray) -> None:
        """Begin to read the samples that are not here yet, and return."""
        missing = index_B if self._kept is None else self._kept.missing(index_B)
        self._broken = None
        with self._lock:
            self._calls += 1
            for at, (call, future) in list(self._coming.items()):
                failed = future.done() and future.exception() is not None
                if failed or call <= self._calls - LATE:
                    del self._coming[at]
            wanted = {at: Future[bytes]() for at in missing.tolist() if at not in self._coming}
            self._coming.update({at: (self._calls, future) for at, future in wanted.items()})
        for request in self._requests(wanted):
            self._asked.put(request)
            self._one_more_thread()

    def _requests(self, wanted: dict[int, Future[bytes]]) -> Iterator[Request]:
        """The ranges that hold these samples: neighbours together."""
        index_B = np.fromiter(wanted, np.int64, len(wanted))
        index_B = index_B[np.lexsort((self._start_N[index_B], self._file_N[index_B]))]
        file_B, start_B = self._file_N[index_B], self._start_N[index_B]
        columns = (part.tolist() for part in (index_B, file_B, start_B, start_B + self._size_N[index_B]))
        joined: Request | None = None
        for index, file, start, end in zip(*columns, strict=True):
            if joined and file == joined.file and start - joined.end <= JOINED and end - joined.start <= MOST:
                joined.samples.append(index)
                joined.futures.append(wanted[index])
                joined = joined._replace(end=max(end, joined.end))
                continue
            if joined:
                yield joined
            joined = Request(file, start, end, [index], [wanted[index]])
        if joined:
            yield joined

    def _one_more_thread(self) -> None:
        with self._lock:
            if self._threads >= REQUESTS:
                return
            self._threads += 1
        # They end when there is nothing to do, and with the process in any case.
        threading.Thread(target=self._work, name="fastvicreg-fetch", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:  # so that no request is put down between the look and the end
                try:
                    request = self._asked.get_nowait()
                except queue.Empty:
                    self._threads -= 1
                    return
            try:
                if self._broken is not None:  # what is behind it would wait as long, one after another
                    raise self._broken
                for future, part in zip(request.futures, self._fetch(request), strict=True):
                    future.set_result(part)
            except BaseException as error:  # handed to whoever reads the samples
                if isinstance(error, UserError):
                    self._broken = error
                for future in request.futures:
                    if not future.done():
                        future.set_exception(error)

    def _fetch(self, request: Request) -> list[bytes]:
        """The bytes of the request's samples, which are kept where there is room."""
        file, now = self._files[request.file], time.monotonic()
        if now - self._same[request.file] > RECHECK:
            self._same[request.file] = now
            self._remote.require_same(file)
        data = self._remote.read(file, request.start, request.end)
        parts = []
        for index in request.samples:
            start = int(self._start_N[index]) - request.start
            parts.append(data[start : start + int(self._size_N[index])])
            expected = self._expected_hash(index)
            if expected is not None and digest(parts[-1]) != expected:
                self._remote.require_same(file)  # else it is damaged there, which the source tells
            elif self._kept is not None:
                self._kept.put(index, parts[-1])
        return parts
