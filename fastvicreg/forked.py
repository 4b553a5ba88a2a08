"""A process forked from one whose libraries ran threads of their own, as a notebook's: torch does without them there.

OpenMP's threads do not survive a fork, and the child's first parallel loop would wait for them without end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from types import FrameType

log = logging.getLogger(__name__)
_foreign = False


def watch_forks() -> None:
    """From now on, for this process and those that it forks."""
    os.register_at_fork(before=_count, after_in_child=_do_without)


def _count() -> None:
    """Whether there are threads that are not Python's."""
    global _foreign
    try:
        _foreign = len(os.listdir("/proc/self/task")) > threading.active_count()
    except OSError:
        _foreign = False


def _do_without() -> None:
    torch = sys.modules.get("torch")
    if not _foreign or torch is None:
        return
    try:
        several = torch.get_num_threads() > 1
        torch.set_num_threads(1)
    except AttributeError:  # it was still being imported
        return
    if several and not _by_a_dataloader():
        log.warning(
            "forked from a process whose libraries had threads, which do not survive that: torch runs on one here; "
            "multiprocessing's spawn, or a process of its own, keeps them."
        )


def _by_a_dataloader() -> bool:
    """Whether the process is a worker of torch's DataLoader, which wants one thread: there is nothing to tell."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.data.dataloader":
            return True
        frame = frame.f_back
    return False
