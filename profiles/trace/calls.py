"""What a call of a device's runtime does to the host: waits, allocates, starts the device up, launches."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.events import Kind, Trace
from fastvicreg.profiles.trace.intervals import Ids
from fastvicreg.profiles.trace.join import Launches

_SYNC = re.compile(
    r"synchroni[sz]e(?!d)|^(?:cuda|hip)Memcpy(?:2D|3D|WithStream|ToSymbol|FromSymbol|Peer)?$|^(?:cuda|hip)Memset$"
    r"|^(?:cu|hip)Memcpy[DHA]to[DHA](?:_v\d)?$|^ur(?:QueueFinish|EventWait)$|^ze\w+(?:Synchronize|HostSynchronize)$"
    r"|^aclrtMemcpy$|^clFinish$|^clWaitForEvents$",
    re.IGNORECASE,
)
"""Calls in which the host waits for the device."""
_ALLOCATION = re.compile(
    r"^(?:cuda|hip)(?:Host)?(?:Free|Malloc|Alloc)(?:Host|Managed|Pitch|Array|3D)?$|^cuMem(?:Alloc|Free|Create|Map|Unmap)"
    r"|^(?:cuda|hip)Host(?:Un)?Register$|^urUSM\w*(?:Alloc|Free)$|^aclrt(?:Malloc|Free)|^cuMem(?:Release|AddressReserve)",
    re.IGNORECASE,
)
"""Calls of the driver's allocator, which wait for the device to be done."""
_START_UP = re.compile(
    r"^cuInit|CtxCreate|PrimaryCtx|^(?:cuda|hip)(?:SetDevice|InitDevice|GetDeviceCount|StreamCreate|EventCreate"
    r"|DeviceGetStreamPriorityRange)|^cuStreamCreate|^(?:cu|hip)?(?:Module|Library)Load|^(?:cu|hip)Module(?:GetFunction|Load)"
    r"|LibraryGetKernel|^cuLibrary|GetFuncBySymbol|FuncGetAttributes|FuncSetAttribute|^urContextCreate|^urProgram|^aclInit"
)
"""Calls that create a context or load code."""
_LAUNCH = re.compile(r"Launch|Enqueue|Memcpy\w*Async|Memset\w*Async|^launch$|Execute|submit", re.IGNORECASE)
_GRAPH = re.compile("Graph")
_PAGEABLE = re.compile("pageable", re.IGNORECASE)

FIRST_USE_US = 200.0
"""A launch of a kernel that was not launched before, of more than this, loads its code."""
BLOCKED_US = 20.0
"""An asynchronous copy's call of more than this, which returns after the copy's end, waited for it."""
START_UP_US = 10_000.0
"""Calls of more than this, before anything ran on a device, are its start-up, whatever they are called."""

ROLES = ("sync", "alloc", "startup", "launch", "other")
SYNC, ALLOC, STARTUP, LAUNCH, OTHER = range(len(ROLES))


def roles(trace: Trace, launches: Launches, calls: Ids) -> NDArray[np.int8]:
    """Of each call its place in ``ROLES``."""
    role_C = np.full(len(calls), OTHER, np.int8)
    for role, pattern in ((LAUNCH, _LAUNCH), (STARTUP, _START_UP), (ALLOC, _ALLOCATION), (SYNC, _SYNC)):
        role_C[trace.named(calls, pattern)] = role
    tied = np.flatnonzero(launches.call_D >= 0)
    graph = trace.named(calls, _GRAPH)
    work, by = launches.work_D[tied], launches.call_D[tied]
    length = (trace.end_N - trace.start_N)[calls]
    role_C[np.isin(calls, by) & (role_C == OTHER)] = LAUNCH
    role_C[(role_C == LAUNCH) & np.isin(calls, _blocking(trace, work, by))] = SYNC
    first = _first_launches(trace, work, by)
    role_C[(role_C == LAUNCH) & ~graph & (length > FIRST_USE_US) & np.isin(calls, first)] = STARTUP
    began = trace.start_N[launches.work_D].min() if len(launches.work_D) else np.inf
    role_C[(length > START_UP_US) & (trace.end_N[calls] < began) & (role_C != SYNC)] = STARTUP
    return role_C


def _blocking(trace: Trace, work: Ids, by: Ids) -> Ids:
    """Calls of copies that return only once the copy is done: those of pageable memory do, and say so."""
    copy = trace.kind_N[work] == Kind.COPY
    work, by = work[copy], by[copy]
    waited = (trace.end_N[by] >= trace.end_N[work]) & (trace.end_N[by] - trace.start_N[by] > BLOCKED_US)
    return by[waited | trace.named(work, _PAGEABLE)]


def _first_launches(trace: Trace, work: Ids, by: Ids) -> Ids:
    """The calls that launched a kernel of their name for the first time."""
    latest_first = np.argsort(trace.start_N[by], kind="stable")[::-1]
    first = np.full(len(trace.names), -1, np.int64)
    first[trace.name_N[work[latest_first]]] = by[latest_first]  # of several the last one stays
    return first[first >= 0]
