"""Division of each step into stages: our own ``fv.*`` marks, else what a foreign trace's annotations and ops tell."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg import stages as own_names
from fastvicreg.profiles.trace.events import Kind, Trace
from fastvicreg.profiles.trace.intervals import (
    Ids,
    Segments,
    Spans,
    Times,
    divide,
    parents,
    per_window,
    union,
)
from fastvicreg.profiles.trace.intervals import outermost as outermost_of
from fastvicreg.profiles.trace.nest import Nest
from fastvicreg.profiles.trace.steps import Steps

OTHER = "other"
_BATCH = r"(?:the_)?(?:next_)?(?:mini_?)?(?:data|batch(?:es)?|samples?|inputs?|data_?batch|examples?)"
_GET = rf"(?:load|fetch|get|next|read|wait|wait[_ ]?for|wait[_ ]?on|iter)(?:ing)?[ _-]?{_BATCH}(?:_samples|[ _-]?wait)?"
_BATCH_GET = (
    rf"{_BATCH}[ _-]?(?:load(?:er|ing)?|wait(?:ing)?|fetch(?:ing)?|time|iter(?:ator)?|next|stall)"
    r"(?:[ _-]?(?:next|wait|time|iter))?"
)
_LOADER = r"data|data_?loader(?:[ _.-]*(?:__)?(?:next|iter|wait|get)(?:__)?)?"
DATA = re.compile(
    rf"^({re.escape(own_names.DATA_WAIT)}$|enumerate\(DataLoader\)|.*\[_?TrainingEpochLoop\].*_next$"
    rf"|[#\s]*(?:[\w ]*[./:|] ?)?(?:{_GET}|{_BATCH_GET}|{_LOADER})[#\s]*(?:\(\))?$)",
    re.IGNORECASE,
)
"""Annotations under which a step waits for its data: ours, torch's, Lightning's, and what people call it."""
DATA_FRAME = re.compile(
    r"(?:^|/)torch/utils/data/dataloader\.py\(\d+\): (?:__next__|_next_data|_get_data|_try_get_data|_process_data)$"
    r"|(?:ffcv/loader|nvidia/dali/plugin|webdataset|torchdata|streaming)/[\w/]+\.py\(\d+\): __next__$"
    r"|spdl/[\w/]+\.py\(\d+\): (?:__next__|get_item)$"
)
"""Python functions in which a step waits for its data, where stacks were recorded."""

_OWN = re.compile(rf"^({'|'.join(map(re.escape, own_names.ALL))})$")
_TORCH_INTERNAL = re.compile(
    r"^(ProfilerStep|nccl:|gloo:|record_param_comms|TorchDynamo|Torch-Compiled Region|Pregraph bytecode)"
    r"|PyTorch Profiler|CompiledFxGraph|CompiledFunction"
)
_BACKWARD_OP = re.compile(r"^autograd::engine::evaluate_function|Backward\d*$|AccumulateGrad$")
_COPY_OP = re.compile(r"^aten::(to|_to_copy|copy_)$")
_TO_DEVICE = re.compile(r"HtoD|HostToDevice|CopyHostToDevice")
_WHOLE_STEP = 0.98


class Stages(NamedTuple):
    """``segments`` covers the steps' windows on the step's thread; its ids index ``names``, whose last is "other"."""

    names: tuple[str, ...]
    segments: Segments
    derived: frozenset[str]
    """Stages that no annotation named: their bounds come from the operators."""

    def per_step(self, steps: Steps) -> NDArray[np.float64]:
        """(W, stages) microseconds."""
        return per_window(self.segments, steps.windows, len(self.names))


def find_stages(trace: Trace, steps: Steps) -> Stages:
    """Ours where there are any; else the outermost annotations, with forward and backward derived where unnamed."""
    marks = trace.where(Kind.ANNOTATION)
    marks = marks[trace.lane_N[marks] == steps.lane]
    own = marks[trace.named(marks, _OWN)]
    if len(own):
        named = _by_name(trace, steps.lane, own, lambda name: name, outermost=False)
        named = {name: named[name] for name in own_names.ALL if name in named}
        derived: dict[str, Spans] = {}
    else:
        foreign = marks[~trace.named(marks, _TORCH_INTERNAL)]
        named = _by_name(trace, steps.lane, _below_whole_steps(trace, steps, foreign), _clean, outermost=True)
        derived = _derive(trace, steps, named)
    layers = {**named, **derived}
    names = (*layers, OTHER)
    return Stages(names, divide(list(layers.values()), steps.windows), frozenset(derived))


def _clean(name: str) -> str:
    """``## forward ##`` is forward; ``Optimizer.step#SGD.step`` is Optimizer.step."""
    text = name.strip("# ")
    return text.split("#", 1)[0] if text.startswith(("Optimizer.", "enumerate(")) else text


def _by_name(trace: Trace, lane: int, marks: Ids, clean: Callable[[str], str], *, outermost: bool) -> dict[str, Spans]:
    start, end = trace.start_N[marks], trace.end_N[marks]
    if outermost:
        top = outermost_of(start, end)
        start, end, names = start[top], end[top], trace.name_N[marks][top]
    else:
        nest = Nest(trace, marks)
        pieces = nest.segments(lane)
        start, end, names = pieces.start_S, pieces.end_S, trace.name_N[nest.events_E[pieces.id_S]]
    found: dict[str, list[int]] = {}
    for number in dict.fromkeys(names.tolist()):
        found.setdefault(clean(trace.names[number]), []).append(number)
    return {
        name: union(start[np.isin(names, numbers)], end[np.isin(names, numbers)]) for name, numbers in found.items()
    }


def _below_whole_steps(trace: Trace, steps: Steps, marks: Ids) -> Ids:
    """Without annotations that wrap whole steps and hold others: they tell nothing apart."""
    while len(marks):
        parent = parents(trace.start_N[marks], trace.end_N[marks])
        holders = np.unique(parent[parent >= 0])
        if not len(holders):
            break
        spans = union(trace.start_N[marks[holders]], trace.end_N[marks[holders]])
        covered = per_window(divide([spans], steps.windows), steps.windows, 2)[:, 0]
        length = steps.windows.end_M - steps.windows.start_M
        whole = [h for h in holders.tolist() if parent[h] < 0]
        if not whole or (covered < _WHOLE_STEP * length).any():
            break
        top = union(trace.start_N[marks[whole]], trace.end_N[marks[whole]])
        if top.total < _WHOLE_STEP * steps.windows.total:
            break
        marks = np.delete(marks, whole)
    return marks


def _derive(trace: Trace, steps: Steps, named: dict[str, Spans]) -> dict[str, Spans]:
    """Copies to the device, backward and forward, as far as no annotation's name has the word."""
    words = " ".join(named).lower()
    ops = trace.where(Kind.OP)
    backward = ops[trace.named(ops, _BACKWARD_OP)]
    on_main = ops[trace.lane_N[ops] == steps.lane]
    top = on_main[outermost_of(trace.start_N[on_main], trace.end_N[on_main])]
    top = top[~trace.named(top, _BACKWARD_OP)]
    for spans in named.values():
        top = top[~spans.covers(trace.start_N[top])]
    copies = _copies(trace, steps, top)
    breaks = np.concatenate((steps.windows.start_M, *(spans.start_M for spans in named.values())))
    backward_runs, forward_runs = _runs(trace, backward, np.setdiff1d(top, copies, assume_unique=True), breaks)
    found = {}
    if "h2d" not in words and len(copies):
        found["h2d"] = union(trace.start_N[copies], trace.end_N[copies])
    if "backward" not in words and len(backward_runs.start_M):
        found["backward"] = backward_runs
    if "forward" not in words and len(forward_runs.start_M):
        found["forward"] = forward_runs
    return found


def _copies(trace: Trace, steps: Steps, top: Ids) -> Ids:
    """The outermost ops that copy from the host to the device."""
    device_copies = trace.where(Kind.COPY)
    device_copies = device_copies[trace.named(device_copies, _TO_DEVICE)]
    calls = trace.where(Kind.RUNTIME)
    calls = calls[trace.lane_N[calls] == steps.lane]
    calls = calls[np.isin(trace.correlation_N[calls], trace.correlation_N[device_copies])]
    candidates = top[trace.named(top, _COPY_OP)]
    first = np.searchsorted(trace.start_N[calls], trace.start_N[candidates])
    last = np.searchsorted(trace.start_N[calls], trace.end_N[candidates])
    return candidates[last > first]


def _runs(trace: Trace, backward: Ids, forward: Ids, breaks: Times) -> tuple[Spans, Spans]:
    """Hulls of successive backward ops and of successive others; a run ends where the other kind or a break begins."""
    start = np.concatenate((breaks, trace.start_N[backward], trace.start_N[forward]))
    end = np.concatenate((breaks, trace.end_N[backward], trace.end_N[forward]))
    kind = np.repeat([0, 1, 2], [len(breaks), len(backward), len(forward)])
    order = np.lexsort((kind, start))
    start, end, kind = start[order], end[order], kind[order]
    opens = np.concatenate(([0], np.flatnonzero(np.diff(kind)) + 1))
    reach = np.maximum.reduceat(end, opens)
    of_kind = [kind[opens] == number for number in (1, 2)]
    return tuple(union(start[opens][chosen], reach[chosen]) for chosen in of_kind)  # type: ignore[return-value]
