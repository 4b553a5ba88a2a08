"""Run as a process: a long tiny run, and what of memory, file handles and threads it holds as it goes.

``python growing.py DATA ENGINE STEPS OUT`` prints the measurements and, of each, how much more the last quarter of the
run holds than its second one, as JSON.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from runs import tiny

from fastvicreg.show.display import Display
from fastvicreg.stalls import Watchdog
from fastvicreg.train.trainer import Trainer

POINTS = 80
"""Measurements of a run."""


@dataclass
class Held:
    """What this process holds at one step."""

    step: int
    rss_kb: int
    handles: int
    threads: int


class Measuring(Watchdog):
    """Hears of every step, and measures at some of them."""

    def __init__(self, every: int) -> None:
        super().__init__(0)
        self.held: list[Held] = []
        self._every = every
        self.evaluations = 0

    def __call__(self, stage: str, *, factor: float = 1.0) -> None:
        step = re.fullmatch(r"step (\d+)", stage)
        self.evaluations += stage.startswith("the evaluation")
        if step and int(step[1]) % self._every == 0:
            status = Path("/proc/self/status").read_text()
            rss, threads = (int(status.partition(f"{name}:")[2].split()[0]) for name in ("VmRSS", "Threads"))
            self.held.append(Held(int(step[1]), rss, len(os.listdir("/proc/self/fd")), threads))


def growth(held: list[Held], name: str) -> float:
    """Share by which the median of the last quarter is above that of the second: the first is the warm-up."""
    values = [getattr(one, name) for one in held]
    quarter = len(values) // 4
    before = statistics.median(values[quarter : 2 * quarter])
    return statistics.median(values[-quarter:]) / before - 1


def main(data: Path, engine: str, steps: int, out: Path) -> None:
    torch.set_num_threads(1)
    config = tiny(data, epochs=-(-steps // 3), steps=steps, eval_every=20, checkpoint_every=100, log_every=10)
    config = replace(config, data=replace(config.data, pipeline=engine, stall_timeout=120))
    watch = Measuring(max(1, steps // POINTS))
    with (out.parent / "display.txt").open("w") as text:
        outcome = Trainer(
            config, out, resume=False, display=Display(Console(file=text, width=200)), watch=watch
        ).train()
    told = {
        "engine": engine,
        "steps": outcome.step,
        "epochs": outcome.step // 3,
        "evaluations": watch.evaluations,
        "growth": {name: round(growth(watch.held, name), 5) for name in ("rss_kb", "handles", "threads")},
        "held": [(one.step, one.rss_kb, one.handles, one.threads) for one in watch.held],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
