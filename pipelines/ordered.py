"""Work spread over threads whose results come back in order, with a bounded number under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_order(
    work: Callable[[int], Result], indices: range, *, workers: int = 0, chunk: int = 16, name: str = "fastvicreg"
) -> Generator[Result]:
    """``work(i)`` for each of ``indices``, in their order; ``workers`` threads, 0: one a core.

    At most (2 x workers + 1) x chunk results wait or are under way. An exception of ``work`` is raised in its place.
    Close the generator to stop early: work not begun is dropped, work under way is waited for.
    """
    workers = workers or len(os.sched_getaffinity(0))
    starts = iter(range(indices.start, indices.stop, chunk))
    pending: deque[Future[list[Result]]] = deque()

    def run(start: int) -> list[Result]:
        return [work(index) for index in range(start, min(start + chunk, indices.stop))]

    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        while True:
            while len(pending) <= 2 * workers and (start := next(starts, None)) is not None:
                pending.append(pool.submit(run, start))
            if not pending:
                return
            yield from pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
