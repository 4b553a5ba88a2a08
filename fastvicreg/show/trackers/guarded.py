"""A tracker in a thread of its own: whatever it does, the run neither waits for it nor ends by it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Sequence
from typing import Any

from fastvicreg.show.trackers import Opened, Point, Tracker

ROWS = 100_000
"""Points that wait for a slow tracker; later ones are dropped."""
PATIENCE = 30.0
"""Seconds that a run's end waits for what is still to be sent."""


class Guarded:
    """Builds ``kind`` and feeds it, in order; ``complaints`` says once what went wrong."""

    def __init__(self, name: str, kind: type[Any], opened: Opened) -> None:
        self.name = name
        self._waiting: queue.Queue[Sequence[Point] | None] = queue.Queue(ROWS)
        self._told: queue.Queue[str] = queue.Queue()
        self._failed = False
        self._thread = threading.Thread(target=self._work, args=(kind, opened), name=f"log-{name}", daemon=True)
        self._thread.start()

    def log(self, points: Sequence[Point]) -> None:
        """Take ``points`` for the thread, at once."""
        if self._failed:
            return
        try:
            self._waiting.put_nowait(points)
        except queue.Full:
            self._complain("it is too slow, and further points are dropped")

    def complaints(self) -> list[str]:
        """Lines to show, each once."""
        lines = []
        while True:
            try:
                lines.append(self._told.get_nowait())
            except queue.Empty:
                return lines

    def close(self) -> None:
        """Let the thread send what waits, for ``PATIENCE`` seconds at most."""
        if not self._failed:
            with contextlib.suppress(queue.Full):  # it hangs, or is too slow: told below
                self._waiting.put(None, timeout=PATIENCE)
        self._thread.join(0 if self._failed else PATIENCE)
        if self._thread.is_alive() and not self._failed:
            self._complain(f"not all was sent within {PATIENCE:g} s of the run's end")

    def _work(self, kind: type[Any], opened: Opened) -> None:
        try:
            tracker: Tracker = kind(opened)
            if tracker.note:
                self._told.put(tracker.note)
            while (points := self._waiting.get()) is not None:
                batch, ended = self._together(points)
                tracker.log(batch)
                if ended:
                    break
            tracker.close()
        except BaseException as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._complain(f"{lines[0][:200]}")

    def _together(self, points: Sequence[Point]) -> tuple[list[Point], bool]:
        """``points`` and all that wait behind them; whether the end was among these."""
        batch = list(points)
        while True:
            try:
                more = self._waiting.get_nowait()
            except queue.Empty:
                return batch, False
            if more is None:
                return batch, True
            batch += more

    def _complain(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            self._told.put(f"--log {self.name} gets nothing more ({reason}); the run's own log has everything.")
