"""Training on a device that fails: the host learns of it late, from any call, and can read nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from skipping import Skipping

from fastvicreg.config import DataConfig, RunConfig, TrainConfig
from fastvicreg.contracts import Batch, Terms
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import read
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.assemble import Run, assemble
from fastvicreg.train.failures import device_failure
from fastvicreg.train.trainer import Trainer

ASSERTED = "CUDA error: device-side assert triggered"


class Failing:
    """One step whose total nobody can read, then ``error``."""

    def __init__(self, step: Any, error: Exception) -> None:
        self.updater = step.updater
        self._error = error
        self._done = False
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def __call__(self, batch: Batch, scalars: Mapping[str, float]) -> Terms:
        if self._done:
            raise self._error
        self._done = True
        return Terms(torch.empty((), device="meta"), {})


def tiny(data: Path, **run: Any) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(data=str(data), image_size=16, recipe="small", workers=2),
        encoder=ResNetConfig(arch="resnet18", width=16, stem="3x3s2"),
        method=VICRegConfig(expander=(16, 16)),
        run=RunConfig(epochs=3, batch_size=8, device="cpu", **run),
    )


def trainer_of(config: TrainConfig, folder: Path, run: Run) -> Trainer:
    return Trainer(config, folder, resume=False, display=Display(quiet=True), run=run)


def failing(folder: Path, data: Path, error: Exception) -> Trainer:
    config = tiny(data)
    run = assemble(config)
    return trainer_of(config, folder, replace(run, step=Failing(run.step, error)))  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [ASSERTED, "augment was not launched: CUDA_ERROR_ASSERT", "cuDNN error: 5000"])
def test_a_failed_assertion_is_told_in_one_line_whichever_call_met_it(
    make_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    trainer = failing(tmp_path / "run", make_folder(val=0), RuntimeError(words))
    monkeypatch.setattr("fastvicreg.train.trainer.device_failure", lambda device: ASSERTED)
    with pytest.raises(UserError, match=r"no longer finite after step 1 .*a lower --base-lr than"):
        trainer.train()
    assert read(tmp_path / "run") == []
    assert trainer._run.step.closed == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_on_the_device_and_ends_the_run(
    make_folder: Any, tmp_path: Path, where: str
) -> None:
    config = tiny(make_folder(val=0), log_every=2, checkpoint_every=1)
    run = assemble(config)
    run.step.updater.optimizer = Skipping(run.module.parameters())
    weight, calls = run.encoder.get_parameter("conv1.weight"), iter(range(9))
    if where == "gradient":
        weight.register_hook(lambda gradient: gradient * (torch.nan if next(calls) else 1.0))
    else:

        def spoilt(embeddings: Any, targets: Any) -> Terms:
            terms = run.method.loss(embeddings, targets)
            return terms._replace(total=terms.total * (torch.nan if next(calls) else 1.0))

        run = replace(run, step=run.step.replaced(loss=spoilt))
    with pytest.raises(UserError, match="no longer finite after step 1 "):
        trainer_of(config, tmp_path / "run", run).train()
    assert weight.isfinite().all()
    assert [row["total"] is not None for row in read(tmp_path / "run")] == [True, False]
    (saved,) = checkpoints.listed(tmp_path / "run" / "checkpoints")
    assert saved.name.endswith("1")
    assert not hasattr(run.step.updater.optimizer, "found_inf")  # which a later step would take for its own


def test_another_error_of_a_device_keeps_its_own_words(
    make_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = failing(tmp_path / "run", make_folder(val=0), RuntimeError("CUDA error: an illegal memory access"))
    monkeypatch.setattr(
        "fastvicreg.train.trainer.device_failure", lambda device: "CUDA error: an illegal memory access"
    )
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        trainer.train()


def test_a_device_is_asked_for_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(device: str) -> None:
        raise torch.AcceleratorError(f"{ASSERTED} on {device}")

    assert device_failure("cpu") == ""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert device_failure("cuda") == ""
    monkeypatch.setattr(torch.cuda, "synchronize", failed)
    assert device_failure("cuda:1") == f"{ASSERTED} on cuda:1"
