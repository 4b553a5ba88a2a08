"""A run's parts: a profile takes and refuses what training does."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from methods import METHOD_CONFIGS
from runs import tiny

from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.profiles.parts import opened, step


def swav(data: Path, queue_from_epoch: int) -> TrainConfig:
    """Six steps, three an epoch, whose queue holds two batches."""
    method = replace(METHOD_CONFIGS["swav"], queue_from_epoch=queue_from_epoch)  # type: ignore[type-var]
    return replace(tiny(data, epochs=2), method=method)


def test_a_late_queue_that_training_fills_can_be_profiled(make_folder: Any) -> None:
    config = swav(make_folder(train=24, val=0), 1)
    with opened(config) as run, closing(step(config, run)) as loop:
        next(loop)
        assert run.horizon(config) == (6, 3, 8)


def test_one_that_training_refuses_is_refused(make_folder: Any) -> None:
    config = swav(make_folder(train=24, val=0), 2)
    with opened(config) as run, pytest.raises(UserError, match="full after 8 steps, and the run has 6"):
        next(step(config, run))
