"""Settings that change nothing, or that nobody means: a new run is refused, a run that was saved with them goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from runs import log, tiny, train

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.dino.config import DINOConfig
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.unmeant import refuse_unmeant


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (BYOLConfig(predictor=False, predictor_hidden=(8,)), "--predictor-hidden 8 needs a predictor"),
        (SimSiamConfig(predictor=False, predictor_hidden=(8, 4)), "--predictor-hidden 8 4 needs a predictor"),
        (DINOConfig(teacher_warmup=30), "--teacher-warmup 30 has no way to go: give --teacher-temperature-start"),
    ],
)
def test_a_method_s_setting_that_changes_nothing_is_told(method, says: str) -> None:
    config = TrainConfig(method=method)
    config.check()
    with pytest.raises(UserError, match=says):
        refuse_unmeant(config)


def test_what_a_run_was_saved_with_goes_on(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an earlier version let it begin."""
    config = tiny(uninterrupted[0], epochs=1, eval_every=0)
    method = BYOLConfig(projector=(8, 8), predictor=False, predictor_hidden=(8,))
    config = replace(config, method=method, data=replace(config.data, recipe="small", small_size=0))
    run = tmp_path / "run"
    train(replace(config, run=replace(config.run, steps=1)), run)
    assert main(["train", "--config", str(run), "--out", str(tmp_path / "new")]) == 2
    assert "--predictor-hidden 8 needs a predictor" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["train", "--resume", "--steps", "0", "--out", str(run)]) == 0, capsys.readouterr().err
    assert len([row for row in log(run) if "total" in row]) > 1
