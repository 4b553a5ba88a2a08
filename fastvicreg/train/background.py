"""Work that goes on in a thread while training does: one piece at a time, whose error is not lost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One thread; a piece of work waits for the one before it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[object] | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin ``work`` once the piece before it is done. Raises what that one raised; ``work`` is not begun then."""
        self.wait()
        self._running = self._thread.submit(work)

    def check(self) -> None:
        """Raise what the last piece raised, if it has ended."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Until the last piece is done; raises what it raised, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait for the thread to end."""
        self._thread.shutdown()
