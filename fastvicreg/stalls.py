"""Waits with an end: what gives nothing for too long is named, with the place where it is stuck.

A read from a dead network disk, or a library that hangs, cannot be interrupted; its thread is left behind, and the
process ends without it (``leave``).
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from fastvicreg.errors import UserError

LIMIT = 600.0
"""Seconds without a result after which a wait is given up, unless told otherwise."""

FIRST = 10
"""Times its limit that a stage may take which compiles, lists a million files, meets others, or has limits within."""
NEVER = 365 * 86400.0
"""Seconds that stand for no limit where a number is needed."""

SLICE = 5.0
"""Seconds at once of a longer wait."""

_stuck = threading.Event()


class StalledError(UserError):
    """Something that was waited for gave nothing within its limit."""

    def __init__(self, what: str, seconds: float, where: str = "") -> None:
        """``what`` gave nothing for ``seconds``; ``where`` says where its threads are."""
        _stuck.set()
        super().__init__(f"{what} gave nothing for {seconds:g} s" + (f": {where}." if where else "."))


def waited(ready: Callable[[float], bool], seconds: float) -> bool:
    """Whether ``ready(timeout)`` comes true within ``seconds``, asked for a part of them at a time.

    A process that was stopped meanwhile, by Ctrl-Z or a scheduler, has waited for one part more, not for all that time.
    """
    parts = max(20, math.ceil(seconds / SLICE))
    return any(ready(seconds / parts) for _ in range(parts))


def whereabouts(name: str) -> str:
    """Where each thread whose name begins with ``name`` is, by the innermost call of this program and what it calls."""
    frames = sys._current_frames()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(name)]
    told = [f"{thread.name} in {_place(frames[thread.ident])}" for thread in threads if thread.ident in frames]
    return ", ".join(told)


def _place(frame: FrameType) -> str:
    """The innermost call, and before it the innermost of this program where that is another."""
    inner: FrameType | None = frame
    calls = []
    while inner is not None:
        calls.append((inner.f_code.co_qualname, inner.f_code.co_filename, inner.f_lineno))
        inner = inner.f_back
    root = os.path.dirname(os.path.abspath(__file__)) + os.sep
    homes = (root, os.path.dirname(root[:-1]) + os.sep)
    own = next((call for call in calls if call[1].startswith(homes) and "site-packages" not in call[1]), calls[0])
    shown = [own] if own == calls[0] else [own, calls[0]]
    return ", in ".join(f"{call} ({os.path.basename(file)}:{line})" for call, file, line in shown)


def leave(code: int) -> None:
    """End the process with exit code ``code``; at once where a thread is stuck, which would be waited for."""
    if not _stuck.is_set():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def watching(seconds: float) -> Watchdog:
    """A command's watchdog, which comes behind the limit ``seconds`` of its parts, as these say more.

    ``UserError`` where that is no limit.
    """
    if not 0 <= seconds < NEVER:
        raise UserError(f"--stall-timeout {seconds}: give seconds, or 0 for no limit.")
    return Watchdog(3 * seconds, told=_last_words)


def _last_words(text: str) -> None:
    print(f"fastvicreg: {text}", file=sys.stderr, flush=True)


class Watchdog:
    """Ends the process where its main thread has not come to a new stage for ``seconds``, with a line that says where.

    For waits that nothing else bounds: a folder on a dead disk, a device that hangs, processes that never answer. 0
    seconds: no watch.
    """

    def __init__(
        self, seconds: float, *, told: Callable[[str], None] = print, end: Callable[[int], None] = os._exit
    ) -> None:
        self._seconds, self._told, self._end = seconds, told, end
        self._stage, self._factor = "", 1.0
        self._news, self._done = threading.Event(), threading.Event()
        self._main = threading.current_thread()
        self._thread = threading.Thread(target=self._watch, name="fastvicreg-watchdog", daemon=True)

    def __call__(self, stage: str, *, factor: float = 1.0) -> None:
        """A new stage begins, which may take ``factor`` times the limit."""
        self._stage, self._factor = stage, factor
        self._news.set()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._news.set()

    def _watch(self) -> None:
        while not self._done.is_set():
            if waited(self._news.wait, self._seconds * self._factor):
                self._news.clear()
                continue
            frame = sys._current_frames().get(self._main.ident or 0)
            where = f", in {_place(frame)}" if frame else ""
            self._told(f"{self._stage}: nothing for {self._seconds * self._factor:g} s{where}. The process ends.")
            self._end(2)
            return
