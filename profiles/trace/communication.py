"""Communication between devices: which kernels it is, what of it computation hides, and how fast it was."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace.events import Kind, Trace
from fastvicreg.profiles.trace.intervals import Ids, divide, per_window

if TYPE_CHECKING:
    from fastvicreg.profiles.trace.device import Device
    from fastvicreg.profiles.trace.steps import Steps

NAMES = re.compile(
    r"nccl|rccl|msccl|one_?ccl|hccl|^hcom_|\bccl::|nvshmem|roc_?shmem|deep_?ep::|(?:inter|intra)node::|userbuffers"
    r"|cross_device_(?:reduce|gather|store)|quick_?reduce|multimem_|symm_mem|lamport|(?:one|two)_?shot_?all"
    r"|(?<!sm)(?<!over)all_?(?:reduce|gather|to_?all)|all2all|reduce_?scatter(?!_?(?:elementwise|index))|send_?recv",
    re.IGNORECASE,
)
"""Kernels that wait for other devices while they run: busy is not what they are."""

_BYTES = {
    "float": 4, "float32": 4, "int": 4, "int32": 4, "double": 8, "float64": 8, "long": 8, "int64": 8, "half": 2,
    "float16": 2, "bfloat16": 2, "short": 2, "int16": 2, "byte": 1, "char": 1, "bool": 1, "uint8": 1, "int8": 1,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip


class CollectiveRow(NamedTuple):
    """One kind of collective; bytes and GB/s (of the larger buffer, a call) are None where sizes were not recorded."""

    name: str
    calls: int
    ms: float
    bytes: float | None
    gb_per_s: float | None


class Communication(NamedTuple):
    """Microseconds in the steps that computation hides and that nothing hides."""

    exposed_us: float
    hidden_us: float
    collectives: list[CollectiveRow]

    @property
    def overlap(self) -> float:
        """Share that computation hides."""
        whole = self.exposed_us + self.hidden_us
        return self.hidden_us / whole if whole else 0.0


def is_communication(trace: Trace, events: Ids, further: str | None = None) -> NDArray[np.bool_]:
    """Which events communicate, by their names or because they say which collective they are.

    ``UserError`` where ``further`` is no pattern.
    """
    found = trace.named(events, NAMES) | (trace.collective_N[events] >= 0)
    if further:
        try:
            found |= trace.named(events, re.compile(further))
        except re.error as error:
            raise UserError(f"--comm {further}: {error}; give a regular expression, such as 'my_sum|ring_'.") from None
    return found


def find_communication(trace: Trace, steps: Steps, device: Device, further: str | None) -> Communication | None:
    """None where nothing communicated in the steps."""
    compute, comm, _ = device.layers
    exposed = per_window(divide([compute, comm], steps.windows), steps.windows, 3)[:, 1].sum()
    whole = per_window(divide([comm], steps.windows), steps.windows, 2)[:, 0].sum()
    if not whole > 0:
        return None
    kernels = device.events_N[trace.kind_N[device.events_N] == Kind.KERNEL]
    kernels = kernels[is_communication(trace, kernels, further)]
    kernels = kernels[steps.windows.covers(trace.start_N[kernels])]
    return Communication(float(exposed), float(whole - exposed), _collectives(trace, kernels))


def _collectives(trace: Trace, kernels: Ids) -> list[CollectiveRow]:
    rows: dict[str, list[tuple[float, float | None]]] = {}
    for event in kernels.tolist():
        said = trace.collectives[trace.collective_N[event]] if trace.collective_N[event] >= 0 else None
        name = said.name if said else trace.names[trace.name_N[event]].split("(")[0].split("<")[0]
        size = None
        if said and (width := _BYTES.get(said.dtype.lower().removeprefix("c10::"))):
            size = float(width * max(said.sent, said.received)) or None
        rows.setdefault(name, []).append((float(trace.end_N[event] - trace.start_N[event]), size))
    found = []
    for name, calls in rows.items():
        sized = [(us, size) for us, size in calls if size is not None]
        total = sum(size for _, size in sized)
        took = sum(us for us, _ in sized)
        found.append(
            CollectiveRow(
                name,
                len(calls),
                sum(us for us, _ in calls) / 1e3,
                total / len(sized) if sized else None,
                total / took / 1e3 if sized and took > 0 else None,
            )
        )
    return sorted(found, key=lambda row: (-row.ms, row.name))
