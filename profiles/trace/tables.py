"""Tables of a trace: kernels with their share of the device's peak, operators with host and device time, threads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.device import Device
from fastvicreg.profiles.trace.events import Kind, Trace
from fastvicreg.profiles.trace.intervals import Ids, distinct, last_begun
from fastvicreg.profiles.trace.join import Launches, device_times
from fastvicreg.profiles.trace.roofline import device_peak, kernel_flops
from fastvicreg.profiles.trace.steps import Steps

_HEX = re.compile(r"0x[0-9a-fA-F]+|(?<=_)[0-9a-f]{8,}(?=_|$)")
_NUMBER = re.compile(r"\d+")
_OWN = re.compile(r"^fv\.")
_GENERIC = re.compile(
    r"elementwise_kernel|reduce_kernel|multi_tensor_apply_kernel|(?:^|::)[Kk]ernel\d?$|device_kernel$"
)
_WORD = re.compile(r"[A-Za-z_]\w*(?:::\w+)*")
_TYPE = re.compile(
    r"float|double|int|long|bool|char|unsigned|signed|void|const|true|false|half|Half|BFloat16|TensorIterator"
    r"|\w*[Oo]ffset\w*|ReduceOp|TensorListMetadata|GemmUniversal|c10|at|std"
)


class KernelRow(NamedTuple):
    """One kernel, by its short name; ``share`` is of all kernels' time, ``roofline`` of the device's peak."""

    name: str
    calls: int
    ms: float
    share: float
    mean_us: float
    roofline: float | None


class OperatorRow(NamedTuple):
    """One operator: time of its own on the host, without what it called, and of the kernels it launched itself."""

    name: str
    calls: int
    host_ms: float
    host_share: float
    device_ms: float


class WorkerRow(NamedTuple):
    """What the engines' threads did beside the step, by our own annotation."""

    name: str
    calls: int
    threads: int
    ms: float


def short_name(name: str) -> str:
    """A kernel's name without return type, arguments and template, but with the functor that a generic one runs."""
    text = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    kept: list[str] = []
    template: list[str] = []
    depth = 0
    for character in text:
        if character == "(" and depth == 0 and kept and kept[-1] != " ":
            break
        if character in "<(":
            depth += 1
        elif character in ">)" and depth:
            depth -= 1
        else:
            (template if depth else kept).append(character)
            continue
        template.append(" ")
    # What stands before a space at the outermost level is the type that it returns.
    base = "".join(kept).strip().rsplit(" ", 1)[-1]
    if base and _GENERIC.search(base):
        functors = (word.rsplit("::", 1)[-1] for word in _WORD.findall("".join(template)))
        functor = next((word for word in functors if not _TYPE.fullmatch(word)), None)
        return f"{base}<{functor}>" if functor else base
    return base or name


def normalised(name: str) -> str:
    """The name under which a kernel is compared between traces: no template arguments, addresses or numbers."""
    return _NUMBER.sub("#", _HEX.sub("#", short_name(name)))


def in_steps(trace: Trace, steps: Steps, indices: Ids) -> tuple[Ids, Ids]:
    """Those of the events that start inside a step, and the step of each."""
    return _at(steps, indices, trace.start_N[indices])


def launched_in_steps(trace: Trace, steps: Steps, launches: Launches) -> tuple[Ids, Ids]:
    """The kernels that were launched inside a step, wherever they ran, and the step of each."""
    kernel = trace.kind_N[launches.work_D] == Kind.KERNEL
    return _at(steps, launches.work_D[kernel], launches.launched_at(trace)[kernel])


def _at(steps: Steps, indices: Ids, time: NDArray[np.float64]) -> tuple[Ids, Ids]:
    step = last_begun(steps.windows.start_M, time)
    inside = time < np.append(steps.windows.end_M, -np.inf)[step]
    return indices[inside], step[inside]


def kernel_table(trace: Trace, steps: Steps, devices: Sequence[Device], launches: Launches) -> list[KernelRow]:
    """The kernels of all devices that were launched inside a step, by time."""
    kernels, _ = launched_in_steps(trace, steps, launches)
    length = trace.end_N[kernels] - trace.start_N[kernels]
    flops, peak = kernel_flops(trace, kernels, launches.of(trace, kernels), device_peak(devices[0].name))
    possible = length * 1e-6 * peak
    # A rate above the peak shows that the shapes or the precision were misread.
    known = np.isfinite(flops) & np.isfinite(possible) & (possible > 0)
    known[known] = flops[known] <= 1.05 * possible[known]
    # Instances that differ in template arguments only are one kernel to a reader.
    short = {name: short_name(trace.names[name]) for name in distinct(trace.name_N[kernels]).tolist()}
    names = list(dict.fromkeys(short.values()))
    number = {name: place for place, name in enumerate(names)}
    place_of = np.zeros(len(trace.names), np.int64)
    place_of[list(short)] = [number[name] for name in short.values()]
    inverse = place_of[trace.name_N[kernels]]
    count = np.bincount(inverse, minlength=len(names))
    total = np.bincount(inverse, length, len(names))
    done = np.bincount(inverse[known], flops[known], len(names))
    could = np.bincount(inverse[known], possible[known], len(names))
    rows = [
        KernelRow(
            name=name,
            calls=int(count[i]),
            ms=float(total[i] / 1e3),
            share=float(total[i] / max(total.sum(), 1e-12)),
            mean_us=float(total[i] / count[i]),
            roofline=float(done[i] / could[i]) if could[i] else None,
        )
        for i, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: (-row.ms, row.name))


def operator_table(trace: Trace, steps: Steps, launches: Launches) -> list[OperatorRow]:
    """The operators that start inside a step, by host and device time together."""
    nest = launches.ops
    ops, own = nest.events_E, nest.own_times()
    inside = steps.windows.covers(trace.start_N[ops])
    ops, own = ops[inside], own[inside]
    if not len(ops):
        return []
    name = trace.name_N[ops]
    names, count = distinct(name), np.bincount(name)
    host = np.bincount(name, own)[names] / 1e3
    on_device = np.bincount(name, device_times(trace, launches)[ops])[names] / 1e3
    rows = [
        OperatorRow(
            trace.names[name],
            int(count[name]),
            float(host[i]),
            float(host[i] / max(host.sum(), 1e-12)),
            float(on_device[i]),
        )
        for i, name in enumerate(names.tolist())
    ]
    return sorted(rows, key=lambda row: (-(row.host_ms + row.device_ms), row.name))


def worker_table(trace: Trace, steps: Steps) -> list[WorkerRow]:
    """Our annotations on other threads than the step's, by time; they start inside a step."""
    marks = trace.where(Kind.ANNOTATION)
    marks = marks[(trace.lane_N[marks] != steps.lane) & trace.named(marks, _OWN)]
    marks, _ = in_steps(trace, steps, marks)
    rows = []
    for name in distinct(trace.name_N[marks]).tolist():
        own = marks[trace.name_N[marks] == name]
        ms = float((trace.end_N[own] - trace.start_N[own]).sum() / 1e3)
        rows.append(WorkerRow(trace.names[name], len(own), len(distinct(trace.lane_N[own])), ms))
    return sorted(rows, key=lambda row: (-row.ms, row.name))
