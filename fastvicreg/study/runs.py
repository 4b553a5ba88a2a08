"""One run of a study: trained by the trainer, continued where it was stopped, and measured on labelled images."""

from __future__ import annotations

import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import nn

from fastvicreg.config import TrainConfig, kernel_choices
from fastvicreg.contracts import Cursor, Method
from fastvicreg.datasets import Datasets, open_data, recipe_of
from fastvicreg.errors import DivergedError, UserError
from fastvicreg.evaluate.diagnostics import rank_me
from fastvicreg.evaluate.features import Features
from fastvicreg.evaluate.knn import accuracy, knn_predict
from fastvicreg.evaluate.labels import obstacle
from fastvicreg.evaluate.linear import linear_predict
from fastvicreg.evaluate.online import NEIGHBOURS, RANK_SAMPLES, shared_features
from fastvicreg.methods.embeddings import unit_std
from fastvicreg.show.display import Display
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.assemble import as_module, assemble, build_method
from fastvicreg.train.device import resolve_device
from fastvicreg.train.distributed import device_of, launched
from fastvicreg.train.online_probe import without_probe
from fastvicreg.train.schedules import schedules_of
from fastvicreg.train.trainer import Outcome, Trainer

WARM, TIMED = 2, 6
"""Steps before a step's time is taken, and steps it is taken of."""
TURNS = 8
"""How often a step's time is taken where it is compared with others'."""


class StepTime(NamedTuple):
    """What a step of a run takes with its data."""

    seconds: float
    """Median."""
    cpu_seconds: float
    """Mean, of all threads of this process."""
    build: float
    """Seconds until the first."""
    per_epoch: int
    """Batches."""


class Stopped(NamedTuple):
    """A signal ended a run before its end: the same command goes on."""

    signal: int


@dataclass(frozen=True)
class Trained:
    """What training left: figures are measured of it unless it was stopped or diverged."""

    seconds: float
    cpu_seconds: float | None
    """Of all threads of this process; None for a run that was continued, of which only the end is known."""
    steps: int = 0
    """In all, with those before it was continued."""
    signal: int | None = None
    diverged: str = ""


def labelled_data(config: TrainConfig) -> Datasets:
    """The data of ``config``; ``UserError`` where its labels give no accuracy that means something."""
    data = open_data(config)
    if reason := obstacle(data.train, data.validation, bank_where=data.where, queries_where=data.validation_where):
        raise UserError(f"no accuracy: {reason}")
    return data


def step_time(config: TrainConfig, *, timed: int = TIMED) -> StepTime:
    """What a step of fresh weights takes, over ``timed`` of them."""
    began = time.perf_counter()
    run = assemble(config)
    built = time.perf_counter() - began
    try:
        horizon = run.horizon(config)
        schedules, _ = schedules_of(run.method, config.optim, horizon)
        times: list[float] = []
        cpu: list[float] = [time.process_time()]
        scalars = {name: schedule(0) for name, schedule in schedules.items()}
        clock = time.perf_counter()
        for epoch in itertools.count():  # small data have few batches each
            feed = run.feed.epoch(Cursor(epoch, 0))
            for fed in itertools.islice(feed, WARM + timed - len(times)):
                run.step(fed.batch, scalars).total.item()
                times.append(time.perf_counter() - clock)
                cpu.append(time.process_time())
                clock = time.perf_counter()
            feed.close()
            if len(times) == WARM + timed:
                break
    finally:
        run.engine.close()
    return StepTime(statistics.median(times[WARM:]), (cpu[-1] - cpu[WARM]) / timed, built, horizon.steps_per_epoch)


def steps_in_turns(configs: Mapping[str, TrainConfig], *, turns: int = TURNS) -> dict[str, float]:
    """CPU-seconds of a step of each of ``configs``: the least of ``turns``, in each of which every one has its own.

    Whatever else a machine does only adds to it. One whose speed moves for a minute at a time is so as fast for one as
    for another, where medians would be of its one state here and of its other there.
    """
    taken: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(turns):
        for name, config in configs.items():
            taken[name].append(step_time(config).cpu_seconds)
            gc.collect()  # as in carry
    return {name: min(each) for name, each in taken.items()}


def carry(config: TrainConfig, folder: Path, data: Datasets) -> dict[str, Any] | Stopped:
    """Train in ``folder``, or go on there, and measure what it gave: figures, or ``diverged`` with the reason.

    With what they cost: ``views`` of training, ``train_seconds`` and ``cpu_seconds``; of evaluation
    ``evaluation_views`` and ``evaluation_cpu_seconds``.
    """
    trained = train(config, folder)
    # Parts of a run refer to each other: until they are collected its data stay mapped, run after run.
    gc.collect()
    if trained.signal:
        return Stopped(trained.signal)
    figures: dict[str, Any] = {"diverged": trained.diverged}
    began = time.process_time()
    if not trained.diverged:
        figures = measure(finished(config, folder), config, data)
    views = len(recipe_of(config.data).views)
    return figures | {
        "views": trained.steps * config.run.batch_size * views,
        "train_seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
        "evaluation_views": len(data.train) + len(data.validation or ()),
        "evaluation_cpu_seconds": time.process_time() - began,
    }


def train(config: TrainConfig, folder: Path) -> Trained:
    """Train in ``folder``, from its newest checkpoint where there is one; what is shown goes to its display.txt."""
    began, cpu = time.perf_counter(), time.process_time()
    continued = bool(checkpoints.listed(folder / "checkpoints"))
    folder.mkdir(parents=True, exist_ok=True)
    shown = folder / "display.txt" if launched().main else Path(os.devnull)
    outcome, why = Outcome(folder, 0), ""
    with shown.open("a") as text:
        display = Display(Console(file=text, width=200))
        try:
            outcome = Trainer(config, folder, resume=True, display=display).train()
        except DivergedError as error:
            why = str(error)
    used = None if continued else time.process_time() - cpu
    return Trained(time.perf_counter() - began, used, outcome.step, outcome.signal, why)


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
    features: ``rankme``, and ``knn`` and ``linear`` as ``classify``. Every process has all of them.
    """
    as_module(method).eval()
    bank, queries = features(next(iter(method.encoders.values())), config, data)
    z_MD = method.head(queries.features_NF)
    figures = {
        "std": float(z_MD.std(0).mean()),
        "std_normalized": float(unit_std(z_MD)) * math.sqrt(z_MD.shape[1]),
        "rankme_embedding": rank_me(z_MD[:RANK_SAMPLES]),
        "rankme": rank_me(queries.features_NF[:RANK_SAMPLES]),
    }
    return figures | classify(bank, queries)


def features(encoder: nn.Module, config: TrainConfig, data: Datasets) -> tuple[Features, Features]:
    """Those of both splits, in every process."""
    assert data.validation is not None
    bank, queries = (
        shared_features(
            encoder,
            source,
            image_size=config.data.image_size,
            device=_device(config),
            workers=config.data.workers,
            processes=launched(),
        )
        for source in (data.train, data.validation)
    )
    return bank, queries


def classify(bank: Features, queries: Features) -> dict[str, float]:
    """``knn`` and ``linear``: accuracies of ``queries`` in percent."""
    given = bank.features_NF, bank.labels_N, queries.features_NF
    return {
        "knn": accuracy(knn_predict(*given, k=min(NEIGHBOURS, len(bank.labels_N))), queries.labels_N),
        "linear": accuracy(linear_predict(*given), queries.labels_N),
    }


def _device(config: TrainConfig) -> str:
    return device_of(launched(), resolve_device(config.run.device))
