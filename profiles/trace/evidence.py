"""What each verdict was seen in: the call, operator, kernel or frame, with its share of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastvicreg.profiles.trace.communication import NAMES
from fastvicreg.profiles.trace.device import WAIT
from fastvicreg.profiles.trace.events import Trace
from fastvicreg.profiles.trace.gaps import Gaps
from fastvicreg.profiles.trace.host import Host
from fastvicreg.profiles.trace.steps import Steps
from fastvicreg.profiles.trace.tables import KernelRow, OperatorRow

_BOUNDS = {"alloc": "allocator"}


def device_evidence(
    trace: Trace, steps: Steps, kernels: Sequence[KernelRow], gaps: Gaps, idle_by: Mapping[str, float], comm: str | None
) -> dict[str, str]:
    """By the verdict's cause."""
    total = steps.windows.total
    found: dict[str, str] = {}
    if kernels:
        work = [row for row in kernels if not NAMES.search(row.name) and not WAIT.search(row.name)] or kernels
        found["compute"] = f"{_cut(work[0].name)} takes {work[0].share:.0%} of the kernels' time"
        waits = [row for row in kernels if NAMES.search(row.name)] or ([kernels[0]] if comm else [])
        if waits:
            found["comm"] = f"{_cut(waits[0].name)}, {waits[0].mean_us / 1e3:.2f} ms each"
    for cause, (name, us) in gaps.blamed.items():
        if cause not in ("host_op", "python"):
            found[_BOUNDS.get(cause, cause)] = f"{_cut(name)} {us / total:.1%} of the step"
    parts = []
    for cause, word in (("host_op", "operators"), ("python", "Python")):
        name, us = gaps.blamed.get(cause, ("", 0.0))
        parts.append(f"{word} {idle_by[cause]:.1%}" + (f", of which {_cut(name)} {us / total:.1%}" if us else ""))
    parts.sort(key=lambda part: -idle_by["host_op" if part.startswith("operators") else "python"])
    found["host"] = "; ".join(parts)
    return found


def host_evidence(
    operators: Sequence[OperatorRow], stages: Mapping[str, float], host: Host, steps: Steps
) -> dict[str, str]:
    """The same of a trace without a device."""
    found: dict[str, str] = {}
    total = steps.windows.total / 1e3
    if operators:
        top = max(operators, key=lambda row: row.host_ms)
        found["compute"] = f"{_cut(top.name)} {top.host_ms / total:.0%} of the step"
    stage = max(stages, key=stages.__getitem__)
    if stage != "other":
        found["compute"] = "; ".join([*filter(None, [found.get("compute")]), f"{_cut(stage)} {stages[stage]:.0%}"])
    if host.frame:
        found["python"] = f"{_cut(host.frame[0])} {host.frame[1]:.0%} of the step"
    return found


def _cut(name: str) -> str:
    return name if len(name) <= 90 else name[:87] + "..."
