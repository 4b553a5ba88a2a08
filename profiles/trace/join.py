"""Ties the device's work to the call that launched it and to the operator around that call.

Shape suffixes: D events on a device, C calls, N events of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.events import ON_DEVICE, Kind, Trace
from fastvicreg.profiles.trace.intervals import Ids, Times
from fastvicreg.profiles.trace.nest import Nest


@dataclass(frozen=True)
class Launches:
    """Of each event on a device the call that launched it and the innermost operator around that call, -1 for none.

    A graph's launch is one call of many kernels. Indices are into the trace's events.
    """

    work_D: Ids
    call_D: Ids
    op_D: Ids
    ops: Nest
    numbered: int
    """Events of the device that have a correlation."""
    lost: int
    """Those of them whose call is not in the trace."""

    def launched_at(self, trace: Trace) -> Times:
        """When each was launched; where no call is known, when it began."""
        return trace.start_N[np.where(self.call_D >= 0, self.call_D, self.work_D)]

    def of(self, trace: Trace, events: Ids) -> Ids:
        """The operator of each of these events of the device."""
        op_N = np.full(len(trace.kind_N), -1, np.int64)
        op_N[self.work_D] = self.op_D
        return op_N[events]

    @property
    def known(self) -> float:
        """Share of the device's events with a correlation whose call is in the trace."""
        return 1 - self.lost / self.numbered if self.numbered else 1.0


def find_launches(trace: Trace) -> Launches:
    """By correlation to the call, by time and thread to the operator.

    Without a call, by the operator's number where it is one: some versions write the correlation in its place.
    """
    work, ops = trace.where(*ON_DEVICE), Nest(trace, trace.where(Kind.OP))
    call_D = _calls(trace, work)
    op_D = np.full(len(work), -1, np.int64)
    tied = np.flatnonzero(call_D >= 0)
    calls = call_D[tied]
    place = ops.at(trace.lane_N[calls].astype(np.int64), trace.start_N[calls])
    op_D[tied] = np.where(place >= 0, ops.events_E[place], -1) if len(ops.events_E) else -1
    loose = np.flatnonzero(call_D < 0)
    if len(loose):
        op_D[loose] = _by_number(trace, work, loose)
    numbered = trace.correlation_N[work] >= 0
    return Launches(work, call_D, op_D, ops, int(numbered.sum()), int((numbered & (call_D < 0)).sum()))


def _calls(trace: Trace, work: Ids) -> Ids:
    """The call of each event of the device: the last before it that has its correlation."""
    calls = trace.where(Kind.RUNTIME)
    calls = calls[trace.correlation_N[calls] >= 0]
    number_C = trace.correlation_N[calls]
    # 0 stands for "none" where many have it.
    if (number_C == 0).sum() > 1:
        calls, number_C = calls[number_C != 0], number_C[number_C != 0]
    if not len(calls) or not len(work):
        return np.full(len(work), -1, np.int64)
    order = np.argsort(number_C, kind="stable")  # calls are in order of start
    calls, number_C = calls[order], number_C[order]
    wanted = trace.correlation_N[work]
    last = np.searchsorted(number_C, wanted, side="right") - 1
    first = np.searchsorted(number_C, wanted, side="left")
    known = (last >= 0) & (number_C[np.maximum(last, 0)] == wanted) & (wanted >= 0)
    place = np.where(known, last, 0)
    while True:  # a number that was used again: back to the call before the work
        early = np.flatnonzero(known & (place > first) & (trace.start_N[calls[place]] > trace.start_N[work]))
        if not len(early):
            break
        place[early] -= 1
    return np.where(known, calls[place], -1)


def _by_number(trace: Trace, work: Ids, loose: Ids) -> Ids:
    """The operator whose External id the event has, unless that is only its correlation over again."""
    numbered = (trace.external_N[work] > 0) & (trace.correlation_N[work] >= 0)
    repeats = trace.external_N[work][numbered] == trace.correlation_N[work][numbered]
    ops = trace.where(Kind.OP)
    ops = ops[trace.external_N[ops] > 0]
    if not len(ops) or (len(repeats) and repeats.mean() > 0.5):
        return np.full(len(loose), -1, np.int64)
    external, first = np.unique(trace.external_N[ops], return_index=True)
    wanted = trace.external_N[work[loose]]
    place = np.minimum(np.searchsorted(external, wanted), len(external) - 1)
    return np.where(external[place] == wanted, ops[first[place]], -1)


def device_times(trace: Trace, launches: Launches) -> NDArray[np.float64]:
    """(N,) microseconds of the device's work that each operator launched itself."""
    tied = launches.op_D >= 0
    length = (trace.end_N - trace.start_N)[launches.work_D[tied]]
    return np.bincount(launches.op_D[tied], length, len(trace.kind_N)).astype(np.float64)
