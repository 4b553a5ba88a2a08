"""What an event is, by its category or, in files without categories, by the process that it belongs to."""

from __future__ import annotations

import re
from enum import IntEnum


class Kind(IntEnum):
    """The categories of all versions of the profiler, and of all devices, map to these."""

    OP = 0  # an operator on a host thread
    ANNOTATION = 1  # record_function and the profiler's own ranges, on a host thread
    RUNTIME = 2  # a call of a device's runtime or driver
    KERNEL = 3
    COPY = 4
    MEMSET = 5
    PYTHON = 6  # a Python function, where stacks were recorded
    DEVICE_ANNOTATION = 7  # an annotation as the device saw it
    OVERHEAD = 8  # the profiler's own work, and lazy loading of functions


KINDS = {
    "cpu_op": Kind.OP,
    "Operator": Kind.OP,
    "user_annotation": Kind.ANNOTATION,
    **dict.fromkeys(("cuda_runtime", "cuda_driver", "hip_runtime", "xpu_runtime", "xpu_driver"), Kind.RUNTIME),
    "Runtime": Kind.RUNTIME,
    "runtime": Kind.RUNTIME,
    "kernel": Kind.KERNEL,
    "Kernel": Kind.KERNEL,
    "hpu_op": Kind.KERNEL,
    "mtia_ccp_events": Kind.KERNEL,
    "collective_comm": Kind.KERNEL,
    "gpu_memcpy": Kind.COPY,
    "Memcpy": Kind.COPY,
    "gpu_memset": Kind.MEMSET,
    "Memset": Kind.MEMSET,
    "python_function": Kind.PYTHON,
    "gpu_user_annotation": Kind.DEVICE_ANNOTATION,
    "overhead": Kind.OVERHEAD,
}
ON_DEVICE = (Kind.KERNEL, Kind.COPY, Kind.MEMSET)

IGNORED = frozenset(
    ("Trace", "cuda_sync", "cuda_event", "cpu_instant_event", "external_correlation", "ac2g", "fwdbwd", "async_cpu")
)
"""Categories that tell nothing that others do not."""

_RUNTIME = re.compile(r"_?(?:runtime|driver)$")
_COPY = re.compile(r"memcpy", re.IGNORECASE)
_MEMSET = re.compile(r"memset", re.IGNORECASE)
_DEVICE_PROCESS = re.compile(
    r"CUDA functions|Ascend Hardware|HCCL|^(?:GPU|XPU|NPU|MTIA|HPU)\b|stream \d", re.IGNORECASE
)
_RUNTIME_PROCESS = re.compile(r"^CANN|runtime", re.IGNORECASE)
_REPEATED_PROCESS = re.compile(r"^(?:Overlap Analysis|Communication|AI Core|HBM|DDR|LLC|NPU_MEM)", re.IGNORECASE)


def kind_of(category: str, on_device: bool) -> Kind | None:
    """Of a category; ``on_device`` tells that its events name a device or stream. None: not known."""
    if (known := KINDS.get(category)) is not None:
        return known
    if _RUNTIME.search(category):
        return Kind.RUNTIME
    if not on_device:
        return None
    if _COPY.search(category):
        return Kind.COPY
    return Kind.MEMSET if _MEMSET.search(category) else Kind.KERNEL


def kind_of_process(name: str) -> Kind | None:
    """Of an event without a category, by its process's name; None where others repeat it."""
    if _REPEATED_PROCESS.search(name):
        return None
    if _DEVICE_PROCESS.search(name):
        return Kind.KERNEL
    return Kind.RUNTIME if _RUNTIME_PROCESS.search(name) else Kind.OP
