"""Work spread over threads whose results come back in order, with a bounded number under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from fastvicreg.stalls import LIMIT, StalledError, waited, whereabouts

Result = TypeVar("Result")


def in_order(
    work: Callable[[int], Result],
    indices: range,
    *,
    workers: int = 0,
    chunk: int = 16,
    name: str = "fastvicreg",
    stall: float = LIMIT,
) -> Generator[Result]:
    """``work(i)`` for each of ``indices``, in their order; ``workers`` threads, 0: one a core.

    At most (2 x workers + 1) x chunk results wait or are under way. An exception of ``work`` is raised in its place.
    Close the generator to stop early: work not begun is dropped, work under way is waited for. ``StalledError`` where a
    chunk's result does not come within ``stall`` seconds; its thread is then left behind.
    """
    workers = workers or len(os.sched_getaffinity(0))
    starts = iter(range(indices.start, indices.stop, chunk))
    pending: deque[Future[list[Result]]] = deque()

    def run(start: int) -> list[Result]:
        return [work(index) for index in range(start, min(start + chunk, indices.stop))]

    given_up = False
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        while True:
            while len(pending) <= 2 * workers and (start := next(starts, None)) is not None:
                pending.append(pool.submit(run, start))
            if not pending:
                return
            first = pending.popleft()
            if not waited(lambda timeout, first=first: bool(wait([first], timeout).done), stall):
                given_up = True
                raise StalledError(f"the threads that read and decode ({name})", stall, whereabouts(name))
            yield from first.result()
    finally:
        pool.shutdown(wait=not given_up, cancel_futures=True)
