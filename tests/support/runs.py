"""Whole runs small enough for a test, and what of their logs must be equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import read
from fastvicreg.train.trainer import Outcome, Trainer

RATES = ("images_per_s", "data_wait")


def tiny(data: Path, **run: Any) -> TrainConfig:
    """3 batches an epoch of a network small enough for a test."""
    settings = {"epochs": 3, "batch_size": 8, "device": "cpu", "checkpoint_every": 1, "log_every": 2, "eval_every": 1}
    return TrainConfig(
        data=DataConfig(data=str(data), image_size=16, recipe="small", workers=2, prefetch=2),
        encoder=ResNetConfig(arch="resnet18", width=16, stem="3x3s2"),
        method=VICRegConfig(expander=(16, 16)),
        optim=OptimConfig(base_lr=8.0, warmup_share=0.1),
        run=RunConfig(**(settings | run)),
    )


def with_dino_s_options(config: TrainConfig) -> TrainConfig:
    """Weight decay that moves, clipping that bites and stochastic depth, together."""
    optim = OptimConfig(
        optimizer="adamw",
        base_lr=0.05,
        warmup_share=0.1,
        weight_decay=0.04,
        weight_decay_end=0.4,
        clip=0.02,
        clip_by="parameter",
    )
    return replace(config, optim=optim, encoder=replace(config.encoder, drop_path=0.5))  # type: ignore[type-var, call-arg]


def unevaluated(data: Path, **run: Any) -> TrainConfig:
    """``tiny`` for longer, without evaluations and with few checkpoints."""
    return tiny(data, **({"epochs": 20, "eval_every": 0, "checkpoint_every": 500, "log_every": 10} | run))


def train(config: TrainConfig, folder: Path, *, resume: bool = False) -> Outcome:
    with (folder.parent / "display.txt").open("a") as text:
        display = Display(Console(file=text, width=300))
        return Trainer(config, folder, resume=resume, display=display).train()


def require_same_when_resumed(config: TrainConfig, folder: Path) -> Path:
    """Train whole and in two parts, cut within an epoch of three steps; returns the resumed run of equal log."""
    train(config, folder / "whole")
    train(replace(config, run=replace(config.run, steps=4)), folder / "run")
    train(config, folder / "run", resume=True)
    assert log(folder / "run") == log(folder / "whole")
    return folder / "run"


def log(folder: Path) -> list[dict[str, Any]]:
    """All that must not depend on when the run was stopped."""
    return [{k: v for k, v in row.items() if k not in RATES} for row in read(folder)]
