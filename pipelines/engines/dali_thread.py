"""An iterator run in a thread of its own, with every wait for it bounded: foreign code that hangs stops nobody."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Generator
from typing import Generic, TypeVar

from fastvicreg.stalls import LIMIT, StalledError, waited, whereabouts

Item = TypeVar("Item")

LAST_WAIT = 10.0
"""Seconds that the process's end waits for the thread."""


class _End:
    """What follows the last item: the error that ended the iterator, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Watched(Generic[Item]):
    """Iterates over ``items``: ``ahead`` of them wait, one more is being made.

    The thread is a daemon, so that the process always ends.
    """

    def __init__(self, items: Generator[Item, None, None], name: str, ahead: int = 1, stall: float = LIMIT) -> None:
        """``stall``: seconds without an item after which the thread is given up."""
        self._items = items
        self._name, self._stall = name, stall
        self._ready: queue.Queue[Item | _End] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._given_up = False
        self._thread = threading.Thread(target=self._run, name=f"fastvicreg-{name}", daemon=True)
        # A thread that the interpreter ends inside DALI takes the process down with it (abort): it ends before.
        self._at_exit = weakref.finalize(self, _end, self._stopped, self._thread)
        self._thread.start()

    def __iter__(self) -> Watched[Item]:
        return self

    def __next__(self) -> Item:
        """The next item; what the iterator raises, or ``StalledError`` where none comes within the limit."""
        if self._stopped.is_set():
            raise StopIteration
        came: list[Item | _End] = []

        def ready(timeout: float) -> bool:
            with contextlib.suppress(queue.Empty):
                came.append(self._ready.get(timeout=timeout))
            return bool(came)

        if not waited(ready, self._stall):
            self._given_up = True
            where = f"{whereabouts(self._thread.name)}; --pipeline native reads the same data"
            raise StalledError(f"the {self._name} pipeline", self._stall, where)
        item = came[0]
        if not isinstance(item, _End):
            return item
        self._ready.put(item)  # for whoever asks again
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> bool:
        """Stop after the item that is being made; False where it does not come within the limit."""
        self._stopped.set()
        self._thread.join(timeout=0.1 if self._given_up else self._stall)
        self._given_up = self._thread.is_alive()
        self._at_exit.detach()  # it has ended, or never will
        return not self._given_up

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            try:
                for item in self._items:
                    self._put(item)
                    if self._stopped.is_set():
                        break
            finally:
                self._items.close()
        except BaseException as caught:  # handed to whoever waits for the next item
            error = caught
        self._put(_End(error))

    def _put(self, item: Item | _End) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                pass
        return None


def _end(stopped: threading.Event, thread: threading.Thread) -> None:
    stopped.set()
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join(timeout=LAST_WAIT)
