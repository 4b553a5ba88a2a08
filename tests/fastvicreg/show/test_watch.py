"""A collapse is told while the run still can be stopped, with its likely cause and a flag that is not set already."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from runs import tiny

from fastvicreg.cli import main
from fastvicreg.contracts import Spread
from fastvicreg.encoders.resnet.network import resnet
from fastvicreg.errors import UserError
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg
from fastvicreg.presets import preset
from fastvicreg.show.display import Display
from fastvicreg.show.watch import COLLAPSED, PATIENCE, CollapseWatch
from fastvicreg.train.assemble import assemble
from fastvicreg.train.trainer import Trainer


def spread(settings: VICRegConfig) -> Spread:
    return VICReg(resnet("resnet18", width=16), replace(settings, expander=(4, 4))).spread


def rows(*stds: float) -> list[dict[str, float]]:
    return [{"step": step, "embedding_std": std} for step, std in enumerate(stds, 1)]


def test_a_collapse_is_told_once_and_a_healthy_start_is_not() -> None:
    watch = CollapseWatch(spread(VICRegConfig()), base_lr=0.3)
    low = COLLAPSED / 2
    assert watch.see(rows(*[0.3] * 100)) is None
    assert watch.see(rows(*[low] * (PATIENCE - 1), COLLAPSED, *[low] * (PATIENCE - 1), math.nan)) is None
    assert watch.see(rows(*[low] * (PATIENCE - 1))) is None
    told = watch.see(rows(low))
    assert told is not None
    assert f"embedding_std {low:.2g}" in told
    assert watch.see(rows(*[low] * 100)) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (VICRegConfig(variance=0.0), "--variance 25 is the published weight"),
        (VICRegConfig(variance=1.0), "--variance 1 is weaker than --invariance 25"),
        (VICRegConfig(), "a lower --base-lr than 0.3"),
    ],
)
def test_the_likely_cause_is_one_that_the_settings_have(settings: VICRegConfig, says: str) -> None:
    told = CollapseWatch(spread(settings), base_lr=0.3).see(rows(*[0.01] * PATIENCE))
    assert told is not None
    assert says in told


@pytest.mark.slow
def test_a_run_without_the_variance_term_shows_the_warning_before_it_ends(make_folder, tmp_path: Path) -> None:
    config = tiny(make_folder(val=0), epochs=100, steps=90, eval_every=0, checkpoint_every=90, log_every=1)
    config = replace(config, method=VICRegConfig(variance=0.0, expander=(16, 16)))
    with (tmp_path / "shown.txt").open("w") as text:
        Trainer(config, tmp_path / "run", resume=False, display=Display(Console(file=text, width=300))).train()
    assert (tmp_path / "shown.txt").read_text().count("--variance 0 leaves nothing against it") == 1


@pytest.mark.parametrize(("precision", "advised"), [("off", False), ("auto", False), ("bf16", True)])
def test_a_diverged_run_is_not_advised_the_precision_that_it_has(
    precision: str, advised: bool, make_folder, tmp_path: Path
) -> None:
    config = tiny(make_folder(val=0), precision=precision)
    run = assemble(config)
    trainer = Trainer(config, tmp_path / "run", resume=False, display=Display(), run=run)
    with torch.no_grad():
        run.encoder.get_parameter("conv1.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"a lower --base-lr than 8") as refused:
        trainer.train()
    assert ("--precision off" in str(refused.value)) == advised


def test_a_preset_tells_only_divergences_that_the_settings_still_have() -> None:
    chosen = preset("solo-cifar10")
    assert any("--precision off" in line for line in chosen.told(chosen.config))
    off = replace(chosen.config, run=replace(chosen.config.run, precision="off"))
    assert not any("--precision off" in line for line in chosen.told(off))
    assert len(chosen.told(off)) == len(chosen.told(chosen.config)) - 1


def test_help_shows_the_defaults_of_a_run_with_data(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, epochs in ((["--help"], 100), (["--preset", "demo", "--help"], 12)):
        with pytest.raises(SystemExit):
            main(["train", *arguments])
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"Passes over the data. (default: {epochs})" in text
