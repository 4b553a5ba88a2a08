"""What changed from one trace to another: by step, stage, cause, operator with its shapes, and kernel."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.measure import Timing, summarize
from fastvicreg.profiles.trace.device import PARTS, counted
from fastvicreg.profiles.trace.events import Trace
from fastvicreg.profiles.trace.gaps import LABELS, find_gaps
from fastvicreg.profiles.trace.intervals import Ids, distinct, divide, per_window
from fastvicreg.profiles.trace.join import device_times
from fastvicreg.profiles.trace.steps import Steps
from fastvicreg.profiles.trace.summary import Summary
from fastvicreg.profiles.trace.tables import in_steps, launched_in_steps, normalised

Part = Literal["step", "stage", "device", "idle", "op host", "op device", "kernel"]
Key = tuple[Part, str]

LEAST = 0.01
"""A part that moves by less than this share of the step is no difference; a kernel, of its own time."""
LEAST_OF_STEP = 2e-4
"""A kernel that moves by less than this share of the step is no difference."""
NOTCH = 1.57
"""Times the interquartile range over the root of n: the 95 % interval of a median."""


@dataclass(frozen=True)
class Change:
    """Milliseconds a step of one part in A and in B; ``differs`` where it moved beyond the noise of both."""

    kind: Part
    name: str
    a: Timing
    b: Timing
    differs: bool

    @property
    def delta(self) -> float:
        """Milliseconds a step that B takes longer."""
        return self.b.ms - self.a.ms


@dataclass(frozen=True)
class Difference:
    """``changes`` starts with the step, then each kind with its largest first; ``text`` says it in one sentence."""

    changes: tuple[Change, ...]
    text: str
    notes: tuple[str, ...]

    @property
    def step(self) -> Change:
        """The change of the whole step."""
        return self.changes[0]

    def slower_by(self) -> float:
        """How much longer a step of B takes, as a share of A's; 0 where that is within the noise."""
        return self.step.delta / self.step.a.ms if self.step.differs else 0.0

    def rows(self) -> list[dict[str, Any]]:
        """The figures for ``--json``; spread is the interquartile range as a share of the median."""
        return [
            {
                "kind": change.kind,
                "name": change.name,
                "a_ms": change.a.ms,
                "b_ms": change.b.ms,
                "delta_ms": change.delta,
                "a_spread": change.a.spread,
                "b_spread": change.b.spread,
                "n_a": change.a.n,
                "n_b": change.b.n,
                "differs": change.differs,
            }
            for change in self.changes
        ]


def compare(a: Summary, b: Summary) -> Difference:
    """Medians over the typical steps of each; the noise is the larger interquartile range of the two.

    Where both have a device, a step lasts until the device has done what it launched.
    """
    device = bool(a.devices and b.devices)
    values_a, values_b = _values(a, device), _values(b, device)
    step = float(np.median(values_a["step", "step"]))
    changes = [
        _change(
            key, values_a.get(key, np.zeros(len(a.steps.names))), values_b.get(key, np.zeros(len(b.steps.names))), step
        )
        for key in dict.fromkeys((*values_a, *values_b))
    ]
    order = {kind: place for place, kind in enumerate(dict.fromkeys(c.kind for c in changes))}
    changes.sort(key=lambda c: (order[c.kind], c.name != "step" if c.kind == "step" else False, -abs(c.delta)))
    return Difference(tuple(changes), _sentence(changes), tuple(_notes(a, b)))


def _change(key: Key, a_W: NDArray[np.float64], b_W: NDArray[np.float64], step: float) -> Change:
    """Kernels and their operators are many and short: they are held against their own time and their medians' error."""
    a, b = _timing(a_W), _timing(b_W)
    if key[0] in ("kernel", "op device"):
        error = max(NOTCH * t.ms * t.spread / np.sqrt(t.n) for t in (a, b))
        noise = max(error, LEAST * max(a.ms, b.ms), LEAST_OF_STEP * step)
    else:
        noise = max(a.ms * a.spread, b.ms * b.spread, LEAST * step)
    return Change(*key, a, b, abs(b.ms - a.ms) > noise)


def _timing(ms_W: NDArray[np.float64]) -> Timing:
    if not np.median(ms_W) > 0:
        return Timing(float(np.median(ms_W)), 0.0, len(ms_W))
    return summarize(ms_W.tolist())


def _values(summary: Summary, device: bool) -> dict[Key, NDArray[np.float64]]:
    """(W,) milliseconds of each part in each step; ``device``: with what ran on one."""
    trace, steps, launches = summary.trace, summary.steps, summary.launches
    values: dict[Key, NDArray[np.float64]] = {("step", "step"): steps.device_ms if device else steps.ms}
    if device:
        values["step", "step on the host"] = steps.ms
    for name, us_W in zip(summary.stages.names, summary.stages.per_step(steps).T, strict=True):
        values["stage", name] = us_W / 1e3
    if device:
        part_us_WP, cause_us_WC = _of_launches(summary)
        for name, us_W in zip(PARTS[:-1], part_us_WP.T, strict=False):
            values["device", name] = us_W / 1e3
        for name, us_W in zip(LABELS.values(), cause_us_WC.T, strict=True):
            values["idle", name] = us_W / 1e3
    nest = launches.ops
    own = np.zeros(len(trace.kind_N))
    own[nest.events_E] = nest.own_times()
    ops, step = in_steps(trace, steps, nest.events_E)
    labels = _op_labels(trace, ops)
    values |= _sums("op host", labels, step, own[ops], steps)
    if device:
        values |= _sums("op device", labels, step, device_times(trace, launches)[ops], steps)
        kernels, step = launched_in_steps(trace, steps, launches)
        short = {name: normalised(trace.names[name]) for name in distinct(trace.name_N[kernels]).tolist()}
        names = [short[name] for name in trace.name_N[kernels].tolist()]
        values |= _sums("kernel", names, step, trace.end_N[kernels] - trace.start_N[kernels], steps)
    return values


def _of_launches(summary: Summary) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Microseconds of the devices' parts and of idle's causes, from when a step's work begins until it is done."""
    steps = summary.steps._replace(windows=summary.steps.device_windows)
    parts, causes = [], []
    for device in counted(summary.devices):
        segments = divide(device.layers, steps.windows)
        parts.append(per_window(segments, steps.windows, len(PARTS)))
        moved = device._replace(segments=segments)
        causes.append(find_gaps(summary.trace, steps, moved, summary.launches).cause_us_WC)
    return np.mean(parts, 0), np.mean(causes, 0)


def _op_labels(trace: Trace, ops: Ids) -> list[str]:
    labels: dict[tuple[int, int], str] = {}
    found = []
    for key in zip(trace.name_N[ops].tolist(), trace.shape_N[ops].tolist(), strict=True):
        if key not in labels:
            dims = json.loads(trace.shapes[key[1]][0]) if key[1] >= 0 else []
            shapes = ", ".join(str(d).replace(" ", "") for d in dims if d)
            labels[key] = f"{trace.names[key[0]]}({shapes})"
        found.append(labels[key])
    return found


def _sums(
    kind: Part, names: Sequence[str], step: Ids, us: NDArray[np.float64], steps: Steps
) -> dict[Key, NDArray[np.float64]]:
    numbers: dict[str, int] = {}
    place = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    count = len(steps.names)
    cells = np.bincount(place * count + step, us, len(numbers) * count).reshape(len(numbers), count) / 1e3
    return {(kind, name): cells[number] for name, number in numbers.items() if cells[number].any()}


def _sentence(changes: Sequence[Change]) -> str:
    step = changes[0]
    times = f"{step.a.ms:,.2f} and {step.b.ms:,.2f} ms a step"
    if not step.differs:
        noise = max(step.a.ms * step.a.spread, step.b.ms * step.b.spread, LEAST * step.a.ms)
        moved = [c for c in changes[1:] if c.differs and c.kind in ("stage", "device", "idle")]
        parts = f"; within it {_list(moved[:3])}" if moved else ""
        return f"No difference: {times} (A and B), within the noise of {noise:,.2f} ms{parts}{_kernel(changes)}."
    word = "slower" if step.delta > 0 else "faster"
    text = f"B is {abs(step.delta) / step.a.ms:.0%} {word}: {times} (A and B)"
    kinds = ("device", "idle") if any(c.kind == "device" for c in changes) else ("stage",)
    same_way = [c for c in changes if c.kind in kinds and c.delta * step.delta > 0]
    if not same_way:
        return f"{text}; no single part accounts for it{_kernel(changes)}."
    most = max(same_way, key=lambda c: abs(c.delta))
    what = f"{most.name}, for which the device waits" if most.kind == "idle" else most.name
    kernel = _kernel(changes) if most.kind == "device" else ""
    return f"{text}; most of it is {what}: {most.a.ms:,.2f} -> {most.b.ms:,.2f} ms{kernel}."


def _kernel(changes: Sequence[Change]) -> str:
    """The kernel that moved most."""
    moved = [c for c in changes if c.kind == "kernel" and c.differs]
    if not moved:
        return ""
    most = max(moved, key=lambda c: abs(c.delta))
    share = f" ({most.delta / most.a.ms:+.0%})" if most.a.ms else ""
    return f"; kernel {most.name[:90]} moved most, by {most.delta:+,.3f} ms{share}"


def _list(changes: Iterable[Change]) -> str:
    return ", ".join(f"{c.name} moved by {c.delta:+,.2f} ms" for c in changes)


def _notes(a: Summary, b: Summary) -> list[str]:
    notes = []
    if min(len(a.steps.names), len(b.steps.names)) < 3:
        notes.append("fewer than three steps in a trace: their spread, and so the noise, is hardly known.")
    if (a.device is None) != (b.device is None):
        notes.append("one of the traces has no device: only the host's side is compared.")
    elif a.steps.source != b.steps.source:
        notes.append(f"steps are marked differently: by {a.steps.source} and by {b.steps.source}.")
    elif a.trace.device_name != b.trace.device_name:
        notes.append(f"different devices: {a.trace.device_name} and {b.trace.device_name}.")
    return notes
