"""Reads large files with several processes: one cuts the text into pieces, the others decode them to columns.

The workers are fresh interpreters that import msgspec and numpy alone: a fork would copy the threads' locks and the
memory of a process that runs torch, and ``multiprocessing`` would run the program's own module again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import msgspec

import fastvicreg
from fastvicreg.profiles.trace.chunk import Chunk, chunk_of, packed, unpacked
from fastvicreg.profiles.trace.decode import Stream
from fastvicreg.profiles.trace.entries import OddError, decode_plain

LEAST = 32 << 20
"""Bytes of text from which on further processes are worth their start."""
PACKED = 12
"""Bytes of text in a byte of a compressed trace, at least."""
MOST = 4
"""Workers: more of them wait for the process that cuts the text and puts the columns together."""
WORKER = (
    "import sys; sys.path[:] = sys.argv[1:]; from fastvicreg.profiles.trace.parallel import serve; "
    "serve(sys.stdin.buffer, sys.stdout.buffer)"
)
_SIZE = 8


def workers_for(path: Path) -> int:
    """How many workers the file is worth; 0 where it is small, or where this process has one core."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            size *= PACKED if size and file.read(2) == b"\x1f\x8b" else 1
    except OSError:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST) if size >= LEAST and cores > 1 and sys.executable else 0


def chunks(stream: Stream, count: int) -> Generator[Chunk, None, None]:
    """The file's chunks in its order, decoded by ``count`` workers.

    ``OddError`` where a piece is no plain JSON, or a worker dies: the file must then be read by one process.
    """
    with _workers(count) as ask:
        pieces, coming = stream.pieces(), deque[Future[Chunk]]()
        try:
            for piece in pieces:
                if isinstance(piece, list):
                    yield from _results(coming)
                    yield chunk_of(piece)
                else:
                    coming.append(ask(piece))
                    if len(coming) > count + 1:
                        yield coming.popleft().result()
        finally:
            pieces.close()


def _results(coming: deque[Future[Chunk]]) -> Iterator[Chunk]:
    while coming:
        yield coming.popleft().result()


@contextmanager
def _workers(count: int) -> Iterator[Callable[[bytes], Future[Chunk]]]:
    """Workers that have ended when the block is left, however it is left."""
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(count))
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for _ in range(count):
            worker = start_worker()
            stack.callback(_end, worker)  # before the threads are waited for: it is what they wait for
            idle.put(worker)

        def ask(text: bytes) -> Chunk:
            worker = idle.get()
            try:
                assert worker.stdin is not None
                assert worker.stdout is not None
                _send(worker.stdin, text)
                reply = _receive(worker.stdout)
            except (OSError, ValueError, EOFError):
                reply = None
            finally:
                idle.put(worker)
            if not reply:
                raise OddError
            try:
                return unpacked(reply)
            except msgspec.MsgspecError:
                raise OddError from None

        yield lambda text: threads.submit(ask, text)


def start_worker() -> subprocess.Popen[bytes]:
    """A worker that waits for its first piece; ``OddError`` where the system has no room for one."""
    package = str(Path(fastvicreg.__file__).resolve().parent.parent)
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WORKER, *sys.path, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
    except OSError:  # no memory or no process left
        raise OddError from None


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe:
            with suppress(OSError):  # what was still to be written finds no reader
                pipe.close()


def _send(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(len(content).to_bytes(_SIZE, "little"))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """``EOFError`` where the other process has ended."""
    head = pipe.read(_SIZE)
    content = pipe.read(int.from_bytes(head, "little"))
    if len(head) < _SIZE or len(content) < int.from_bytes(head, "little"):
        raise EOFError
    return content


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """A worker's whole life: pieces of text in, packed chunks out, or nothing for a piece that is no plain JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the reader, which ends its workers
    while True:
        try:
            events = decode_plain(_receive(requests))
        except EOFError:
            return
        except OddError:
            _send(replies, b"")
            continue
        _send(replies, packed(chunk_of(events)))
