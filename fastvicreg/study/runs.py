"""One run of a study: trained by the trainer, continued where it was stopped, and measured on labelled images."""

from __future__ import annotations

import math
import os
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from fastvicreg.config import TrainConfig, kernel_choices
from fastvicreg.contracts import Cursor, Horizon, Method
from fastvicreg.datasets import Datasets, open_data
from fastvicreg.errors import DivergedError, UserError
from fastvicreg.evaluate.diagnostics import rank_me
from fastvicreg.evaluate.knn import accuracy, knn_predict
from fastvicreg.evaluate.labels import obstacle
from fastvicreg.evaluate.linear import linear_predict
from fastvicreg.evaluate.online import NEIGHBOURS, RANK_SAMPLES, shared_features
from fastvicreg.methods.embeddings import unit_std
from fastvicreg.show.display import Display
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.assemble import as_module, assemble, build_method, resolve_device
from fastvicreg.train.distributed import device_of, launched
from fastvicreg.train.online_probe import without_probe
from fastvicreg.train.schedules import schedules_of
from fastvicreg.train.trainer import Trainer

WARM, TIMED = 2, 6
"""Steps before a step's time is taken, and steps it is taken of."""


@dataclass(frozen=True)
class Trained:
    """What training left: figures are measured of it unless it was stopped or diverged."""

    seconds: float
    signal: int | None = None
    diverged: str = ""


def labelled_data(config: TrainConfig) -> Datasets:
    """The data of ``config``; ``UserError`` where its labels give no accuracy that means something."""
    data = open_data(config)
    if reason := obstacle(data.train, data.validation, bank_where=data.where, queries_where=data.validation_where):
        raise UserError(f"no accuracy: {reason}")
    return data


def step_seconds(config: TrainConfig) -> tuple[float, float, int]:
    """(median seconds of a step with its data, seconds to build a run, batches an epoch), of fresh weights."""
    began = time.perf_counter()
    run = assemble(config)
    built = time.perf_counter() - began
    try:
        per_epoch = run.engine.batches_per_epoch(0)
        horizon = Horizon(config.run.epochs * per_epoch, per_epoch, config.run.batch_size)
        schedules, _ = schedules_of(run.method, config.optim, horizon)
        times: list[float] = []
        feed = run.feed.epoch(Cursor(0, 0))
        clock = time.perf_counter()
        for fed in feed:
            run.step(fed.batch, {name: schedule(0) for name, schedule in schedules.items()}).total.item()
            times.append(time.perf_counter() - clock)
            clock = time.perf_counter()
            if len(times) == WARM + TIMED:
                break
        feed.close()
    finally:
        run.engine.close()
    return statistics.median(times[WARM:] or times), built, per_epoch


def train(config: TrainConfig, folder: Path) -> Trained:
    """Train in ``folder``, from its newest checkpoint where there is one; what is shown goes to its display.txt."""
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    shown = folder / "display.txt" if launched().main else Path(os.devnull)
    with shown.open("a") as text:
        display = Display(Console(file=text, width=200))
        try:
            outcome = Trainer(config, folder, resume=True, display=display).train()
        except DivergedError as error:
            return Trained(time.perf_counter() - began, diverged=str(error))
    return Trained(time.perf_counter() - began, outcome.signal)


def fresh(config: TrainConfig) -> Method:
    """The method of ``config`` before its first step, on the run's device."""
    return build_method(config, kernel_choices(config), _device(config))


def finished(config: TrainConfig, folder: Path) -> Method:
    """The method that ``train`` left in ``folder``."""
    method = fresh(config)
    newest = checkpoints.listed(folder / "checkpoints")[-1]
    checkpoints.load_weights(as_module(method), without_probe(checkpoints.read_tensors(newest, "model")), str(newest))
    return method


@torch.no_grad()
def measure(method: Method, config: TrainConfig, data: Datasets) -> dict[str, float]:
    """Figures of a frozen method on the validation split, the training split being the bank.

    Of the embeddings, the outputs of the method's head: ``std``, mean over dimensions; ``std_normalized``, that of
    unit vectors as a share of 1/sqrt(D), 1 where they spread and 0 on collapse; ``rankme_embedding``. Of the encoder's
    features: ``rankme``, ``knn`` and ``linear`` in percent. Every process has all of them.
    """
    assert data.validation is not None
    as_module(method).eval()
    device = _device(config)
    encoder = next(iter(method.encoders.values()))
    bank, queries = (
        shared_features(
            encoder,
            source,
            image_size=config.data.image_size,
            device=device,
            workers=config.data.workers,
            processes=launched(),
        )
        for source in (data.train, data.validation)
    )
    z_MD = method.head(queries.features_NF)
    figures = {
        "std": float(z_MD.std(0).mean()),
        "std_normalized": float(unit_std(z_MD)) * math.sqrt(z_MD.shape[1]),
        "rankme_embedding": rank_me(z_MD[:RANK_SAMPLES]),
        "rankme": rank_me(queries.features_NF[:RANK_SAMPLES]),
    }
    given = bank.features_NF, bank.labels_N, queries.features_NF
    figures["knn"] = accuracy(knn_predict(*given, k=min(NEIGHBOURS, len(bank.labels_N))), queries.labels_N)
    figures["linear"] = accuracy(linear_predict(*given), queries.labels_N)
    return figures


def seeded(config: TrainConfig, seed: int) -> TrainConfig:
    """``config`` with another seed."""
    return replace(config, run=replace(config.run, seed=seed))


def _device(config: TrainConfig) -> str:
    return device_of(launched(), resolve_device(config.run.device))
