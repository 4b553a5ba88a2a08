"""``fastvicreg study table4``: the paper's Table 4, the variance and covariance terms in other methods."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.registry import unknown
from fastvicreg.study.budget import equal_steps, seconds_of
from fastvicreg.study.table4.rows import CELLS, ROWS, Scale, cell_config, parted

if TYPE_CHECKING:
    from fastvicreg.study.session import Session

BUDGET = "20m"


@dataclass(frozen=True)
class Table4:
    """VICReg's variance and covariance terms in BYOL, SimSiam and VICReg without its parts (Table 4).

    Eight rows, each with neither term, with variance, with both: 24 cells, one training run for each and seed, all of
    equally many steps. OUT/table4.json and OUT/table4.png hold what they gave, OUT/ROW-COLUMN-seedN each run.
    """

    data: str | None = None
    """Folder with train/ and val/ (or test/) class folders; default: the embedded images."""
    val_data: str | None = None
    """Labelled images to classify, where they do not lie in --data as val/ or test/."""
    scale: Scale = "cpu"
    """cpu: a narrow ResNet-18 on 32 px images, by --budget; paper: ResNet-50, 100 epochs, batch sizes and learning
    rates of appendix C.4, for GPUs."""
    budget: str | None = None
    """Time for the whole study, such as 90s, 20m, 2h (cpu scale): sets the steps of every run; default 20m."""
    seeds: int = 3
    """Runs of each cell."""
    only: tuple[str, ...] = ()
    """Rows (byol, simsiam, simsiam-no-bn, simsiam-bare, vicreg-pr, vicreg-pr-bn, vicreg-bn, vicreg-bare) or cells
    (ROW-none, ROW-var, ROW-varcov) to run; default: all."""
    width: int = 16
    """Channels of the narrow network's first stage (cpu scale)."""
    batch_size: int = 0
    """TOTAL batch of every run; 0: the scale's own."""
    pipeline: str = "native"
    """Engine that decodes and crops: native, ffcv, dali."""
    workers: int = 0
    """Decoding threads; 0: one a core."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: str = "runs/table4"
    """The study's folder; the same command goes on there."""
    json: str | None = None
    """Write the figures to this file too."""

    def check(self) -> None:
        """``UserError`` for the first value that no study can have."""
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds}: give at least one.")
        if self.budget is not None:
            seconds_of(self.budget)
        if self.scale == "paper":
            if self.budget is not None:
                raise UserError(f"--budget {self.budget}: --scale paper trains 100 epochs a run; leave it out.")
            if self.data is None:
                raise UserError("--scale paper needs --data: the embedded images are 32 px patches.")
            if self.width != Table4.width:
                raise UserError(f"--width {self.width} is of --scale cpu's network: --scale paper trains ResNet-50.")
        if self.batch_size < 0:
            raise UserError(f"--batch-size {self.batch_size}: give 0 for the scale's own, or more.")
        for cell in self.cells():
            self.config(cell).check()

    def cells(self) -> tuple[str, ...]:
        """The cells that --only names, in the table's order; all without it. ``UserError`` for a name of neither."""
        for name in self.only:
            if name not in ROWS and name not in CELLS:
                raise UserError(unknown("row or cell", name, (*ROWS, *(f"ROW-{c}" for c in ("none", "var", "varcov")))))
        return tuple(cell for cell in CELLS if not self.only or {cell, parted(cell)[0]} & set(self.only))

    def config(self, cell: str) -> TrainConfig:
        """All settings of a cell but seed and duration."""
        config = cell_config(cell, self.scale, width=self.width)
        places = {"data": self.data, "val_data": self.val_data}
        paths = {key: path and os.path.abspath(path) for key, path in places.items()}
        data = replace(config.data, **paths, pipeline=self.pipeline, workers=self.workers)
        batch_size = self.batch_size or config.run.batch_size
        return replace(config, data=data, run=replace(config.run, batch_size=batch_size, device=self.device))

    def run(self) -> int:
        """Train and measure what is missing, then show and write all; returns the exit code."""
        # torch is imported only here: help and mistakes in the options answer at once.
        from fastvicreg.study import runs
        from fastvicreg.study.session import Job, opened

        began = time.perf_counter()
        settings = {
            "scale": self.scale,
            "budget": None if self.scale == "paper" else self.budget or BUDGET,
            "data": self.data and os.path.abspath(self.data),
            "val_data": self.val_data and os.path.abspath(self.val_data),
            "width": self.width,
            "batch_size": self.batch_size,
            "pipeline": self.pipeline,
            "device": self.device,
        }
        cells = self.cells()
        with opened("table4", self.out, settings, self.config(cells[0])) as session:
            plan = session.plan(lambda: self._plan(session, began))
            lasting = f"{plan['steps']} steps" if plan["steps"] else f"{self.config(cells[0]).run.epochs} epochs"
            session.display.note(
                f"{len(cells)} cells x {self.seeds} seeds, {lasting} a run; {self.out}/ROW-COLUMN-seedN/display.txt "
                "shows a run"
            )
            seeds = range(self.seeds)
            asked = [(f"{cell}-seed{seed}", self._lasting(cell, plan, seed)) for seed in seeds for cell in cells]
            jobs = [
                Job(name, partial(runs.carry, config, Path(self.out) / name, session.data)) for name, config in asked
            ]
            if (stopped := session.carry_out(jobs, _in_words)) is not None:
                return stopped
            if session.folder:
                self._report(session, plan)
        return 0

    def _plan(self, session: Session, began: float) -> dict[str, Any]:
        """What is settled at the start: figures of a network that has learnt nothing, and the steps of every run."""
        from fastvicreg.study import runs

        cells = self.cells()
        config = self.config(cells[0])
        timed = {}
        if self.scale == "cpu":
            # Before the measuring, which then finds everything compiled, as it will after each run.
            methods = {ROWS[parted(cell)[0]].method: cell for cell in cells}
            timed = {name: runs.step_time(self.config(cell)) for name, cell in methods.items()}
        clock = time.perf_counter()
        untrained = runs.measure(runs.fresh(config), config, session.data)
        measuring = time.perf_counter() - clock
        if not timed:
            return {"steps": 0, "random_network": untrained}
        taken = [timed[ROWS[parted(cell)[0]].method] for cell in cells]
        budget = self.budget or BUDGET
        steps = equal_steps(
            budget,
            seconds_of(budget) - (time.perf_counter() - began),
            per_step=sum(one.seconds for one in taken) * self.seeds,
            fixed=sum(measuring + one.build for one in taken) * self.seeds,
            runs=len(cells) * self.seeds,
        )
        return {
            "steps": steps,
            "per_epoch": taken[0].per_epoch,
            "step_seconds": {name: one.seconds for name, one in timed.items()},
            "random_network": untrained,
        }

    def _lasting(self, cell: str, plan: dict[str, Any], seed: int) -> TrainConfig:
        """All settings of a run."""
        config = self.config(cell)
        return replace(config, run=replace(config.run, total_steps=plan["steps"], seed=seed))

    def _report(self, session: Session, plan: dict[str, Any]) -> None:
        from fastvicreg.provenance import document
        from fastvicreg.study.table4 import picture, results

        folder, display = Path(self.out), session.display
        ran = session.figures()
        found = {cell: ran[cell] for cell in CELLS if cell in ran}
        seeds = max(map(len, found.values()))
        rows = results.summary(found)
        assert session.data.validation is not None
        told = results.directions(rows, images=len(session.data.validation))
        untrained = {"row": "random network", "column": "", **plan["random_network"]}
        settled = {key: value for key, value in plan.items() if key != "random_network"}
        content = document("study table4", [*rows, untrained], seeds)
        content |= {"plan": settled, "settings": session.settings, "directions": told}
        session.publish("table4", content, self.json, results.table(rows, untrained, seeds))
        picture.draw(folder / "table4.png", rows, untrained)
        for line in results.directions_in_words(told):
            display.note(line)
        display.note(f"figures: {folder}/table4.json   picture: {folder}/table4.png")


def _in_words(figures: Mapping[str, Any]) -> str:
    from fastvicreg.study.table4.results import in_words

    return f"{in_words(figures)}, {figures['train_seconds']:.0f} s"
