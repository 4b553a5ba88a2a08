"""Several ranks' traces together: clocks aligned by their collectives, who arrives last, and what it was busy with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.communication import is_communication
from fastvicreg.profiles.trace.events import Kind
from fastvicreg.profiles.trace.summary import Summary

LEAST = 0.02
"""Share of a step that ranks must wait for one of them, for it to be named."""
TELLING = 0.05
"""Without collectives that match: the difference in exposed communication that names a rank."""


class Straggler(NamedTuple):
    """The rank that arrives last; ``waited_ms`` a step is what the first to arrive waits for it."""

    rank: int
    last: int
    collectives: int
    waited_ms: float


def find_straggler(summaries: Sequence[Summary]) -> Straggler | None:
    """From the collectives that all ranks ran in the same order; None where they do not match or nobody waits.

    A collective ends on all ranks at once, which tells how far their clocks are apart.
    """
    ranked = [one for one in summaries if one.trace.rank is not None and one.devices]
    if len(ranked) < 2:
        return None
    spans = [_collectives(one) for one in ranked]
    count = len(spans[0][0])
    if not count or any(len(start) != count for start, _ in spans):
        return None
    end_RC = np.array([end for _, end in spans])
    start_RC = np.array([start for start, _ in spans]) - np.median(end_RC - end_RC[0], axis=1)[:, None]
    late_C, wait_C = start_RC.argmax(0), np.ptp(start_RC, axis=0)
    waited_R = np.bincount(late_C, wait_C, len(ranked))
    worst = int(waited_R.argmax())
    steps = ranked[worst].steps
    waited_ms = float(waited_R[worst]) / 1e3 / max(len(steps.names), 1)
    if waited_ms < LEAST * float(np.median(steps.ms)):
        return None
    rank = ranked[worst].trace.rank
    assert rank is not None
    return Straggler(rank, int((late_C == worst).sum()), count, waited_ms)


def _collectives(summary: Summary) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Starts and ends of the kernels that communicate in the typical steps."""
    trace = summary.trace
    kernels = trace.where(Kind.KERNEL)
    kernels = kernels[is_communication(trace, kernels, summary.comm)]
    kernels = kernels[summary.steps.windows.covers(trace.start_N[kernels])]
    return trace.start_N[kernels], trace.end_N[kernels]


def straggler(summaries: Sequence[Summary]) -> str | None:
    """The rank that the others wait for, and what it does meanwhile, in one line."""
    if found := find_straggler(summaries):
        slow = next(one for one in summaries if one.trace.rank == found.rank)
        others = [one for one in summaries if one is not slow and one.trace.rank is not None]
        return (
            f"rank {found.rank} arrives last at {found.last:,} of {found.collectives:,} collectives; the others wait "
            f"for it, up to {found.waited_ms:,.2f} ms a step{_more_of(slow, others)}."
        )
    comm = {s.trace.rank: s.device_shares["comm"] for s in summaries if s.device_shares and s.trace.rank is not None}
    if len(comm) < 2 or max(comm.values()) - min(comm.values()) < TELLING:
        return None
    rank = min(comm, key=comm.__getitem__)
    return (
        f"rank {rank} waits least in communication ({comm[rank]:.0%}, others up to {max(comm.values()):.0%}): "
        "the others wait for it."
    )


def _more_of(slow: Summary, others: Sequence[Summary]) -> str:
    """What the rank spends more of a step on than the others do."""

    def parts(one: Summary) -> dict[str, float]:
        shares, idle = one.device_shares or {}, one.idle_by or {}
        mean = float(one.steps.ms.mean())
        found = {"computing": shares.get("compute", 0.0), "copying": shares.get("copy", 0.0)}
        found |= {f"waiting for {name.replace('_', ' ')}": share for name, share in idle.items()}
        return {name: share * mean for name, share in found.items()}

    own, theirs = parts(slow), [parts(one) for one in others]
    more = {name: ms - float(np.median([one[name] for one in theirs])) for name, ms in own.items()}
    most = max(more, key=more.__getitem__)
    return f"; it spends {more[most]:,.2f} ms more of a step {most}" if more[most] > 0 else ""
