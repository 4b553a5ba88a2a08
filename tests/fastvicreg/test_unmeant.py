"""Settings that change nothing, or that nobody means: a new run is refused, a run that was saved with them goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from runs import log, tiny, train

from fastvicreg.cli import main
from fastvicreg.config import DataConfig, RunConfig, TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.dino.config import DINOConfig
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicregl.config import VICRegLConfig
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.unmeant import refuse_unmeant


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (BYOLConfig(predictor=False, predictor_hidden=(8,)), "--predictor-hidden 8 needs a predictor"),
        (SimSiamConfig(predictor=False, predictor_hidden=(8, 4)), "--predictor-hidden 8 4 needs a predictor"),
        (VICRegLConfig(alpha=1, local_matches=(4,)), "--local-matches 4 is of the local criterion, and --alpha 1"),
        (VICRegLConfig(alpha=1, local_features=False), "--no-local-features is of the local criterion"),
        (VICRegLConfig(alpha=1, local_projector=(8, 8)), "--local-projector 8 8 is of the local criterion"),
        (DINOConfig(teacher_warmup=30), "--teacher-warmup 30 has no way to go: give --teacher-temperature-start"),
    ],
)
def test_a_method_s_setting_that_changes_nothing_is_told(method, says: str) -> None:
    config = TrainConfig(method=method)
    config.check()
    with pytest.raises(UserError, match=says):
        refuse_unmeant(config)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            TrainConfig(method=BYOLConfig(), run=RunConfig(kernel=("loss=gram",))),
            "--kernel loss=gram computes the variance and covariance terms, and byol has none",
        ),
        (
            TrainConfig(data=DataConfig(data="captions", small_size=96), pair=PairConfig(pair=("image", "text"))),
            "--small-size 96 is of a recipe's small views, and --pair image text has one view of each side",
        ),
    ],
)
def test_an_option_for_what_is_not_there_is_told(config: TrainConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        refuse_unmeant(config)


def test_a_loss_kernel_of_terms_that_are_there_is_taken() -> None:
    for method in (BYOLConfig(variance=1.0), VICRegConfig()):
        refuse_unmeant(TrainConfig(method=method, run=RunConfig(kernel=("loss=gram",))))


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
