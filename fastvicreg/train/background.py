"""Work that goes on in a thread while training does: one piece at a time, whose error is not lost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One thread; a piece of work waits for the one before it.

    Errors of the type ``spared`` are ``told`` and forgotten where other work follows; ``wait`` raises them too.
    """

    def __init__(self, spared: type[Exception] | None = None, told: Callable[[str], None] = print) -> None:
        self._spared, self._told = spared, told
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[object] | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin ``work`` once the piece before it is done. Raises what that one raised; ``work`` is not begun then."""
        self.clear()
        self._running = self._thread.submit(work)

    def check(self) -> None:
        """Raise what the last piece raised, if it has ended."""
        if self._running is not None and self._running.done():
            self.clear()

    def clear(self) -> None:
        """As ``wait``, for what follows."""
        try:
            self.wait()
        except Exception as error:
            if self._spared is None or not isinstance(error, self._spared):
                raise
            self._told(str(error))

    def wait(self) -> None:
        """Until the last piece is done; raises what it raised, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait for the thread to end."""
        self._thread.shutdown()
