"""``fastvicreg study table4``: the paper's Table 4, the variance and covariance terms in other methods."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.registry import unknown
from fastvicreg.study.budget import epochs_and_stop, equal_steps, seconds_of
from fastvicreg.study.rows import CELLS, ROWS, Scale, cell_config, parted

if TYPE_CHECKING:
    from fastvicreg.datasets import Datasets
    from fastvicreg.show.display import Display
    from fastvicreg.study.folder import StudyFolder

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
        from rich.console import Console

        from fastvicreg.show.display import Display
        from fastvicreg.study import runs
        from fastvicreg.study.folder import StudyFolder
        from fastvicreg.train.assemble import resolve_device
        from fastvicreg.train.distributed import device_of, join, launched, leave, together

        began = time.perf_counter()
        processes = launched()
        join(processes, device_of(processes, resolve_device(self.device)))
        display = Display(Console(quiet=not processes.main))
        settings = {
            "scale": self.scale,
            "budget": None if self.scale == "paper" else self.budget or BUDGET,
            "data": self.data and os.path.abspath(self.data),
            "val_data": self.val_data and os.path.abspath(self.val_data),
            "width": self.width,
            "batch_size": self.batch_size,
        }
        folder = None
        try:
            data = together(lambda: runs.labelled_data(self.config(self.cells()[0])), processes)
            folder = together(
                lambda: StudyFolder(Path(self.out), "table4", settings) if processes.main else None, processes
            )
            return self._carry_out(folder, data, display, began)
        finally:
            if folder is not None:
                folder.close()
            leave()

    def _carry_out(self, folder: StudyFolder | None, data: Datasets, display: Display, began: float) -> int:
        """In every process; ``folder`` is the main one's."""
        from fastvicreg.study import results, runs
        from fastvicreg.train.distributed import gather, launched, together
        from fastvicreg.train.signals import exit_code

        processes = launched()
        plan = self._plan(folder, data, began)
        cells = self.cells()
        asked = [(seed, cell) for seed in range(self.seeds) for cell in cells]
        display.note(
            f"{len(cells)} cells x {self.seeds} seeds, {plan['epochs']} epochs a run"
            + (f", stopped at step {plan['stop']}" if plan["stop"] else "")
            + f"; {self.out}/ROW-COLUMN-seedN/display.txt shows a run"
        )
        for number, (seed, cell) in enumerate(asked, 1):
            name = f"{cell}-seed{seed}"
            if gather(folder is not None and folder.result(name) is not None, processes)[0]:
                continue
            config = self._lasting(self.config(cell), plan, seed)
            trained = runs.train(config, Path(self.out) / name)
            if trained.signal:
                display.note(f"stopped in {name}; the same command goes on from there")
                return exit_code(trained.signal)
            figures: dict[str, Any] = {"diverged": trained.diverged} if trained.diverged else {}
            if not trained.diverged:
                method = runs.finished(config, Path(self.out) / name)
                figures = runs.measure(method, config, data)
            figures |= {"train_seconds": trained.seconds}
            together(partial(folder.finish, name, figures) if folder else lambda: None, processes)
            display.note(f"{number}/{len(asked)} {name}: {results.in_words(figures)}, {trained.seconds:.0f} s")
        if folder is not None:
            found = {cell: [folder.result(f"{cell}-seed{seed}") or {} for seed in range(self.seeds)] for cell in cells}
            self._report(folder, found, display)
        return 0

    def _plan(self, folder: StudyFolder | None, data: Datasets, began: float) -> dict[str, Any]:
        """What the folder keeps: made at the start, by measuring a network that has learnt nothing and timing steps."""
        from fastvicreg.study import runs
        from fastvicreg.train.distributed import gather, launched, together

        processes = launched()
        kept: dict[str, Any] = gather(folder.kept if folder else {}, processes)[0]
        if "epochs" in kept:
            return kept
        cells = self.cells()
        config = self.config(cells[0])
        timed = {}
        if self.scale == "cpu":
            # Before the measuring, which then finds everything compiled, as it will after each run.
            methods = {ROWS[parted(cell)[0]].method: cell for cell in cells}
            timed = {name: runs.step_seconds(self.config(cell)) for name, cell in methods.items()}
        clock = time.perf_counter()
        untrained = runs.measure(runs.fresh(config), config, data)
        measuring = time.perf_counter() - clock

        def duration() -> dict[str, Any]:
            if not timed:
                return {"epochs": config.run.epochs, "stop": 0}
            taken = [timed[ROWS[parted(cell)[0]].method] for cell in cells]
            budget = self.budget or BUDGET
            steps = equal_steps(
                budget,
                seconds_of(budget) - (time.perf_counter() - began),
                per_step=sum(step for step, _, _ in taken) * self.seeds,
                fixed=sum(measuring + build for _, build, _ in taken) * self.seeds,
                runs=len(cells) * self.seeds,
            )
            per_epoch = taken[0][2]
            epochs, stop = epochs_and_stop(steps, per_epoch)
            times = {name: step for name, (step, _, _) in timed.items()}
            return {"epochs": epochs, "stop": stop, "per_epoch": per_epoch, "step_seconds": times}

        chosen = together(lambda: duration() if folder else {}, processes)
        if folder is not None:
            folder.keep(random_network=untrained, **chosen)
        return gather(chosen, processes)[0]

    def _lasting(self, config: TrainConfig, plan: dict[str, Any], seed: int) -> TrainConfig:
        """``config`` with the study's duration and a seed; a warm-up that a stop within an epoch shortens too."""
        run = replace(config.run, epochs=plan["epochs"], steps=plan["stop"], seed=seed)
        optim = config.optim
        if plan["stop"]:
            optim = replace(optim, warmup_share=optim.warmup_share * plan["stop"] / plan["per_epoch"])
        return replace(config, run=run, optim=optim)

    def _report(self, folder: StudyFolder, found: dict[str, list[dict[str, Any]]], display: Display) -> None:
        from rich.console import Console

        from fastvicreg.provenance import document, write_json
        from fastvicreg.study import picture, results

        rows = results.summary(found)
        told = results.directions(rows)
        untrained = {"row": "random network", "column": "", **folder.kept["random_network"]}
        plan = {key: value for key, value in folder.kept.items() if key not in ("random_network", "study")}
        content = document("study table4", [*rows, untrained], self.seeds) | {"plan": plan, "directions": told}
        for path in (folder.path / "table4.json", self.json):
            if path:
                write_json(path, content)
        picture.draw(folder.path / "table4.png", rows, untrained)
        # A pipe has no width: wide enough that no figure is cut.
        wide = None if display.console.is_terminal else 200
        Console(width=wide).print(results.table(rows, untrained, self.seeds))
        for line in results.directions_in_words(told):
            display.note(line)
        display.note(f"figures: {folder.path}/table4.json   picture: {folder.path}/table4.png")
