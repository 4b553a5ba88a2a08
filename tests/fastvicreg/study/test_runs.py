"""One run of a study: its steps are timed with their data, and it lets go of these when it has ended."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Batch, Terms
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.study import runs
from fastvicreg.study.table4.study import Table4

PER_EPOCH = 3


def test_a_finished_run_lets_go_of_its_data(images: Path, tmp_path: Path) -> None:
    converted = tmp_path / "data.beton"
    convert_dataset(images / "train", converted, Settings(page_size=1 << 21))
    config = Table4(data=str(converted), val_data=str(converted), batch_size=8, workers=1, device="cpu").config(
        "simsiam-bare-none"
    )
    data = runs.labelled_data(config)

    def held() -> int:
        return sum(os.readlink(path) == str(converted) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())

    gc.collect()
    gc.disable()  # as where few objects are made between two runs
    try:
        before = held()
        runs.carry(replace(config, run=replace(config.run, total_steps=2)), tmp_path / "run", data)
        assert held() == before
    finally:
        gc.enable()


def test_a_step_is_timed_with_its_data(images: Path) -> None:
    options = Table4(data=str(images), batch_size=8, workers=1, device="cpu")
    taken = runs.step_time(options.config("byol-varcov"))
    assert taken.seconds > 0
    assert taken.cpu_seconds > 0
    assert taken.build > 0
    assert taken.per_epoch == PER_EPOCH


def test_small_data_are_timed_over_several_epochs_and_without_the_first_steps(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, made, steps = Table4(data=str(images), batch_size=8, workers=1, device="cpu"), runs.assemble, []

    def compiling(batch: Batch, _: Any) -> Terms:
        steps.append(batch.cursor.epoch)
        time.sleep(0.3 if len(steps) <= runs.WARM else 0)
        return Terms(torch.zeros(()), {})

    monkeypatch.setattr(runs, "assemble", lambda config: replace(made(config), step=compiling))
    assert runs.step_time(options.config("byol-varcov")).seconds < 0.2
    assert steps == [0, 0, 0, 1, 1, 1, 2, 2]
    steps.clear()
    assert runs.step_time(options.config("byol-varcov"), timed=1).seconds < 0.2
    assert len(steps) == PER_EPOCH


def test_steps_are_timed_in_turns_and_by_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    options, order = Table4(data="x"), []
    configs = {name: options.config(name) for name in ("byol-var", "vicreg-bn-var")}
    speeds = iter([3, 4, 100, 2, 3, 9, 5, 200, *[7, 8] * (runs.TURNS - 4)])

    def taken(config: TrainConfig) -> runs.StepTime:
        order.append(config.method.name)
        return runs.StepTime(0.0, next(speeds), 0.0, PER_EPOCH)

    monkeypatch.setattr(runs, "step_time", taken)
    monkeypatch.setattr(runs.gc, "collect", lambda: 0)  # half a second each beside all that tests leave behind
    assert runs.steps_in_turns(configs) == {"byol-var": 3, "vicreg-bn-var": 2}
    assert order == ["byol", "vicreg"] * runs.TURNS
