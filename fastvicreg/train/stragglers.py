"""What the processes tell each other after an epoch: their faults, and which of them made the others wait.

Processes meet in every step, so that all take as long as the slowest: the time of a step does not tell them apart,
nor does the wait of the process that writes the log. So each tells how long it waited for its images, and how long its
device takes for a pass that meets nobody.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastvicreg.contracts import FaultReport
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import Recorder, data_wait_share
from fastvicreg.train.device import AUTOCAST

MARGIN = 0.05
"""Share of an epoch by which one process must wait longer than the others before it is named."""
SLOWER = {"cuda": 1.15, "cpu": 1.5}
"""How many times the others' a process's pass must take before it is named: processes of a CPU share its cores."""
LEAST = {"cuda": 0.0, "cpu": 20.0}
"""Milliseconds by which it must take longer: on a CPU a short pass is as long as another program lets it be."""
PASSES, IMAGES = 5, 64
"""Passes of which the shortest counts, as other work on a machine lengthens some; images of each at most."""


class Told(NamedTuple):
    """What one process tells after an epoch."""

    faults: FaultReport
    wait: float
    """Share of its time that it waited for images."""
    pace: float
    """Milliseconds of ``pace``."""


@torch.no_grad()
def pace(encoder: nn.Module, view: Tensor, precision: str) -> float:
    """Milliseconds that this device takes for some of ``view``'s images (B, ...), forward, without other processes.

    In evaluation mode: no statistics are gathered, moved or drawn from, and nothing of the run changes.
    """
    device, dtype, training = view.device, AUTOCAST[precision], encoder.training
    times = []
    encoder.eval()
    try:
        for _ in range(1 + PASSES):  # the first may have to choose its kernels
            began = time.perf_counter()
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                encoder(view[:IMAGES])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
    finally:
        encoder.train(training)
    return min(times[1:]) * 1e3


class Waits:
    """This process's wait since it was last asked."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []

    def see(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of more steps."""
        self._rows += [{name: row[name] for name in ("images_per_s", "data_wait")} for row in rows]

    def take(self) -> float:
        """The share of these steps' time that was lost to waiting for images; 0 for no steps."""
        rows, self._rows = self._rows, []
        return data_wait_share(rows) if rows else 0.0


def tell_epoch(
    epoch: int, step: int, told: Sequence[Told], display: Display, recorder: Recorder, *, device: str
) -> None:
    """Show an epoch's faults and its stragglers on ``device``; ``told`` by rank."""
    faults, named = Counter[str](), list[str]()
    for one in told:
        faults.update(one.faults.counts)
        named += one.faults.named
    if faults:
        display.faults(epoch, faults, named)
    if len(told) < 2:
        return
    slowest, longest, others = straggler([one.wait for one in told])
    last, pass_ms, others_ms = straggler([one.pace for one in told])
    recorder.processes(
        step,
        epoch,
        {"slowest": slowest, "data_wait": longest, "data_wait_of_others": others}
        | {"slowest_device": last, "pass_ms": pass_ms, "pass_ms_of_others": others_ms},
    )
    if longest - others > MARGIN:
        display.note(
            f"epoch {epoch}: process {slowest} waited for its images {longest:.0%} of the time, the others "
            f"{others:.0%}, and all waited for it: its disk or cores are slower than theirs, or busy with other work."
        )
    kind = device.split(":")[0]
    if pass_ms > max(SLOWER[kind] * others_ms, LEAST[kind] + others_ms):
        display.note(
            f"epoch {epoch}: the same pass through the network takes process {last}'s device {pass_ms:.3g} ms, the "
            f"others' {others_ms:.3g}, and all wait for it: it is another model, too hot, or busy with other work."
        )


def straggler(values: Sequence[float]) -> tuple[int, float, float]:
    """Of two or more processes' times: the rank of the longest, that time, and the median of the others'."""
    slowest = max(range(len(values)), key=lambda rank: values[rank])
    return slowest, values[slowest], median(value for rank, value in enumerate(values) if rank != slowest)
