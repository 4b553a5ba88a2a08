"""Signals that stop a run at the end of its batch, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

URGENT = (signal.SIGINT, signal.SIGTERM)
STOPPING = (*URGENT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""Ctrl-C, kill, a scheduler's notice before its time limit (SLURM's --signal=USR1@90), and a lost terminal."""

PLANNED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers and launchers send to a run that is to go on later."""


def exit_code(number: int) -> int:
    """Of a run that signal ``number`` stopped, with its checkpoint written.

    0 for a stop that was planned: torchrun takes anything else for a failure, and starts the run again or tells SLURM
    that the job failed. As a shell would have it (128 + number) for Ctrl-C and a lost terminal.
    """
    return 0 if number in PLANNED else 128 + number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives the signals of ``STOPPING``; a second SIGINT or SIGTERM ends the process at once.

    The others may come twice (a lost terminal's SIGHUP does, from the kernel and from the shell) and never cut the
    last checkpoint short. A SIGHUP that was ignored, as nohup does, stays so.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        again = number in URGENT and any(earlier in URGENT for earlier in received)
        received.append(number)
        if again:
            raise KeyboardInterrupt

    before = {}
    try:
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread: the caller handles signals
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
