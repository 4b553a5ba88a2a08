"""What a trace does not contain, and what its run uses already: no advice goes beyond the evidence."""

from __future__ import annotations

import re

import numpy as np

from fastvicreg.profiles.trace.events import ON_DEVICE, Kind, Trace
from fastvicreg.profiles.trace.join import Launches
from fastvicreg.profiles.trace.steps import Steps

_GRAPH = re.compile(r"GraphLaunch", re.IGNORECASE)
_COMPILED = re.compile(
    r"^triton_(?:poi|red|per|tem|mm|for|unk)_|CompiledFxGraph|Torch-Compiled Region|CompiledFunction"
)
_HALF = re.compile(r"bf16|bfloat16|_fp16|f16f16|s16816|(?<![a-z])half|h16816|hgemm|fp8|e4m3", re.IGNORECASE)
_CHANNELS_LAST = re.compile(r"nhwc", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv(?!ert)|cudnn|miopen", re.IGNORECASE)
_LAUNCH = re.compile(
    r"Launch(?:Cooperative)?Kernel|GraphLaunch|ModuleLaunch|LaunchKernelEx|urEnqueue\w*Launch|^launch$"
)


def in_use(trace: Trace) -> frozenset[str]:
    """What advice need not name: graphs, compile, half, channels_last, no convolutions."""
    found = set()
    calls, kernels, host = trace.where(Kind.RUNTIME), trace.where(Kind.KERNEL), trace.where(Kind.OP, Kind.ANNOTATION)
    length = (trace.end_N - trace.start_N)[kernels]
    if trace.named(calls, _GRAPH).any():
        found.add("graphs")
    if trace.named(kernels, _COMPILED).any() or trace.named(host, _COMPILED).any():
        found.add("compile")
    if len(kernels) and length[trace.named(kernels, _HALF)].sum() > 0.3 * length.sum():
        found.add("half")
    convolutions = trace.named(kernels, _CONVOLUTION).any() or trace.named(host, _CONVOLUTION).any()
    if not convolutions:
        found.add("no convolutions")
    elif trace.named(kernels, _CHANNELS_LAST).any():
        found.add("channels_last")
    return frozenset(found)


def unrecorded_launches(trace: Trace) -> tuple[int, str]:
    """How many launches a trace without any work of a device holds, and the name of most of them."""
    calls = trace.where(Kind.RUNTIME)
    calls = calls[trace.named(calls, _LAUNCH)]
    if not len(calls) or len(trace.where(*ON_DEVICE)):
        return 0, ""
    return len(calls), trace.names[int(np.bincount(trace.name_N[calls]).argmax())]


def missing(trace: Trace, steps: Steps, launches: Launches) -> list[str]:
    """One line for everything that would have told more, with how to record it."""
    found = []
    if steps.source == "trace":
        found.append("steps: mark them with recorder.step() or an annotation (--steps-by NAME).")
    if not len(trace.where(*ON_DEVICE)):
        found.append("work of a device: ProfilerActivity.CUDA or XPU, where there is one.")
    elif launches.known < 1:
        found.append(f"the calls that launched {launches.lost:,} of {launches.numbered:,} events of the device.")
    if not len(trace.where(Kind.OP)):
        found.append("operators: ProfilerActivity.CPU; without them they count as Python.")
    if not len(trace.where(Kind.PYTHON)):
        found.append("Python's frames: with_stack=True.")
    if not (trace.shape_N >= 0).any():
        found.append("shapes, and so FLOPs: record_shapes=True.")
    if not len(trace.memory.at_N):
        found.append("memory: profile_memory=True.")
    return found
