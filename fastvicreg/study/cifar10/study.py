"""``fastvicreg study cifar10``: what methods learn for equal CPU time, or in equal epochs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.registry import unknown
from fastvicreg.study.cifar10.rows import ROWS, Scale, row_config

if TYPE_CHECKING:
    from fastvicreg.study.session import Job, Session

CPU_SECONDS = 400.0
EPOCHS = (10, 30)
LEAST = 8
"""Steps below which a run shows nothing."""


@dataclass(frozen=True)
class Cifar10:
    """VICReg beside other methods on CIFAR-10, for equal CPU time or in equal epochs.

    Rows: VICReg, the same with four views of half as many images, the same without its variance term, Barlow Twins,
    BYOL, SimCLR, each over several seeds; raw pixels and a random network beside them. OUT/cifar10.json and
    OUT/cifar10.png hold what they gave, OUT/ROW-seedN each run.
    """

    data: str | None = None
    """CIFAR-10 as a folder with train/ and test/ (class folders, or .beton files); other small images do too."""
    val_data: str | None = None
    """Labelled images to classify, where they do not lie in --data as val/ or test/."""
    scale: Scale | None = None
    """cpu: the narrow network of the preset cifar10-cpu, each run by --cpu-seconds; full: the full ResNet-18 and the
    methods' own presets, by --epochs, for a GPU; default: full where --epochs are given, else cpu."""
    cpu_seconds: float | None = None
    """CPU-seconds of each run, on one thread of torch's and those that decode (cpu scale); default 400."""
    epochs: tuple[int, ...] = ()
    """Lengths of the runs, each with a schedule of its own (full scale); default 10 30."""
    seeds: int = 3
    """Runs of each row."""
    only: tuple[str, ...] = ()
    """Rows to run (vicreg, vicreg-4views, vicreg-no-variance, barlow-twins, byol, simclr); default: all."""
    pipeline: str = "native"
    """Engine that decodes and crops: native, ffcv, dali."""
    workers: int = 0
    """Decoding threads; 0: one a core."""
    device: str = "auto"
    """auto, cpu or cuda; cpu scale: the CPU."""
    out: str = "runs/cifar10"
    """The study's folder; the same command goes on there."""
    json: str | None = None
    """Write the figures to this file too."""

    def check(self) -> None:
        """``UserError`` for the first value that no study can have."""
        if self.data is None:
            raise UserError("study cifar10 needs --data: a folder with train/ and test/ of CIFAR-10.")
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds}: give at least one.")
        for name in self.only:
            if name not in ROWS:
                raise UserError(unknown("row", name, ROWS))
        if not self.full and self.epochs:
            raise UserError(f"--epochs {self.epochs[0]} is --scale full's: runs of --scale cpu last for --cpu-seconds.")
        if self.cpu_seconds is not None:
            if self.full:
                raise UserError(f"--cpu-seconds {self.cpu_seconds:g} is --scale cpu's: --scale full goes by --epochs.")
            if not 0 < self.cpu_seconds < math.inf:
                raise UserError(f"--cpu-seconds {self.cpu_seconds:g}: give a number above 0.")
        if not self.full and self.device.startswith("cuda"):
            raise UserError(f"--device {self.device} is --scale full's: --scale cpu counts CPU time; leave it out.")
        for number in self.epochs:
            if number < 1 or self.epochs.count(number) > 1:
                raise UserError(f"--epochs {number}: give different numbers from 1 on.")
        for name in self.rows():
            self.config(name).check()

    @property
    def full(self) -> bool:
        """Whether it is at full scale."""
        return self.scale == "full" or (self.scale is None and bool(self.epochs))

    def rows(self) -> tuple[str, ...]:
        """The rows that --only names, in the table's order; all without it."""
        return tuple(name for name in ROWS if not self.only or name in self.only)

    def lengths(self) -> tuple[int, ...]:
        """Epochs of the runs, shortest first; 0 alone: by CPU-seconds."""
        return tuple(sorted(self.epochs or EPOCHS)) if self.full else (0,)

    def config(self, row: str) -> TrainConfig:
        """All settings of a row but seed and duration."""
        config = row_config(row, "full" if self.full else "cpu")
        places = {"data": self.data, "val_data": self.val_data}
        paths = {key: path and os.path.abspath(path) for key, path in places.items()}
        data = replace(config.data, **paths, pipeline=self.pipeline, workers=self.workers)
        # A GPU's steps take a CPU next to no time.
        device = "cpu" if not self.full and self.device == "auto" else self.device
        return replace(config, data=data, run=replace(config.run, device=device))

    def run(self) -> int:
        """Train and measure what is missing, then show and write all; returns the exit code."""
        # torch is imported only here: help and mistakes in the options answer at once.
        from fastvicreg.study.session import opened
        from fastvicreg.threads import one_thread
        from fastvicreg.train.distributed import launched

        if not self.full and (processes := launched().world_size) > 1:
            raise UserError(f"--scale cpu counts the CPU time of one process, not of {processes}: start it by itself.")
        settings = {
            "scale": "full" if self.full else "cpu",
            "cpu_seconds": None if self.full else self.cpu_seconds or CPU_SECONDS,
            "data": self.data and os.path.abspath(self.data),
            "val_data": self.val_data and os.path.abspath(self.val_data),
            "pipeline": self.pipeline,
            "device": self.device,
        }
        alone = nullcontext() if self.full else one_thread()
        with alone, opened("cifar10", self.out, settings, self.config(self.rows()[0])) as session:
            images, batch_size = len(session.data.train), max(self.config(row).run.batch_size for row in self.rows())
            if images < batch_size:
                raise UserError(
                    f"--data {self.data} has {images} images to train on, less than a batch of {batch_size}: give more."
                )
            jobs = self._jobs(session)
            session.display.note(f"{len(jobs)} runs; {self.out}/ROW-seedN/display.txt shows one")
            if (stopped := session.carry_out(jobs, _in_words)) is not None:
                return stopped
            if session.folder:
                self._report(session)
        return 0

    def _jobs(self, session: Session) -> list[Job]:
        """Baselines, then seed after seed of all rows, so that a study that is cut short has all rows."""
        from fastvicreg.study import runs
        from fastvicreg.study.cifar10.baselines import pixels, untrained
        from fastvicreg.study.session import Job

        first, data, seeds = self.config(self.rows()[0]), session.data, range(self.seeds)
        jobs = [Job("pixels", partial(pixels, first, data))]
        jobs += [Job(f"random-seed{seed}", partial(untrained, _seeded(first, seed), data)) for seed in seeds]
        step_seconds = {} if self.full else self._step_seconds(session)
        for length in self.lengths():
            for seed in seeds:
                for row in self.rows():
                    config = _seeded(self.config(row), seed)
                    if length:
                        config = replace(config, run=replace(config.run, epochs=length))
                    else:
                        config = replace(config, run=replace(config.run, total_steps=self._steps(row, step_seconds)))
                    name = _name(row, length, seed)
                    jobs.append(Job(name, partial(runs.carry, config, Path(self.out) / name, data)))
        return jobs

    def _steps(self, row: str, step_seconds: Mapping[str, float]) -> int:
        """Steps that take the row's CPU-seconds."""
        asked = self.cpu_seconds or CPU_SECONDS
        steps = round(asked / step_seconds[row])
        if steps < LEAST:
            least = math.ceil(LEAST * step_seconds[row])
            raise UserError(f"--cpu-seconds {asked:g} are {steps} steps of {row} here: give {least} or more.")
        return steps

    def _step_seconds(self, session: Session) -> dict[str, float]:
        """CPU-seconds of a step of each row, measured in turns and once for all of its seeds.

        A row that an earlier command did not ask for is measured beside one that it did, and by its ratio to that one:
        the machine may be slower now than it was then.
        """
        from fastvicreg.study import runs

        assert session.folder is not None
        kept: dict[str, float] = session.folder.kept.get("step_cpu_seconds", {})
        if missing := [row for row in self.rows() if row not in kept]:
            session.display.note(f"steps of {', '.join(missing)} are timed in turns")
            beside = list(kept)[:1]
            now = runs.steps_in_turns({row: self.config(row) for row in (*beside, *missing)})
            scale = kept[beside[0]] / now[beside[0]] if beside else 1.0
            kept |= {row: scale * now[row] for row in missing}
            session.folder.keep(step_cpu_seconds=kept)
        return kept

    def _report(self, session: Session) -> None:
        from fastvicreg.provenance import document
        from fastvicreg.study.cifar10 import picture, results

        assert session.folder is not None
        folder, display = Path(self.out), session.display
        ran = {_parted(name): figures for name, figures in session.figures().items()}
        lengths = sorted({length for _, length in ran})
        found = {("pixels", 0): [session.folder.result("pixels") or {}]}
        ordered = [("random", 0), *((row, length) for length in lengths for row in ROWS)]
        found |= {key: ran[key] for key in ordered if key in ran}
        seeds = max(map(len, found.values()))
        rows = results.summary(found)
        content = document("study cifar10", rows, seeds) | {"settings": session.settings}
        if timed := session.folder.kept.get("step_cpu_seconds"):
            content["step_cpu_seconds"] = timed
        session.publish("cifar10", content, self.json, results.table(rows, seeds))
        picture.draw(folder / "cifar10.png", rows)
        display.note(f"figures: {folder}/cifar10.json   picture: {folder}/cifar10.png")


def _name(row: str, length: int, seed: int) -> str:
    return f"{row}-{length}ep-seed{seed}" if length else f"{row}-seed{seed}"


def _parted(name: str) -> tuple[str, int]:
    """Row and length of what ``_name`` gave, but for its seed."""
    row, _, length = name.rpartition("-")
    digits = length.removesuffix("ep")
    return (row, int(digits)) if length != digits and digits.isdecimal() else (name, 0)


def _seeded(config: TrainConfig, seed: int) -> TrainConfig:
    return replace(config, run=replace(config.run, seed=seed))


def _in_words(figures: Mapping[str, Any]) -> str:
    from fastvicreg.study.cifar10.results import in_words

    return in_words(figures)
