"""A finished run's encoder, loaded and evaluated on labelled images."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file

from fastvicreg import checkpoint as checkpoints
from fastvicreg import config as configs
from fastvicreg.assemble import open_data, resolve_device
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import extract
from fastvicreg.evaluate.knn import accuracy, knn_predict
from fastvicreg.evaluate.labels import obstacle, too_few
from fastvicreg.evaluate.linear import few_labels, linear_predict
from fastvicreg.model import ResNet, resnet
from fastvicreg.run_folder import require_run


class Options(Protocol):
    """What ``evaluate_run`` reads of the command's options."""

    @property
    def method(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def data(self) -> str | None: ...
    @property
    def val_data(self) -> str | None: ...
    @property
    def checkpoint(self) -> str | None: ...
    @property
    def k(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def labels_per_class(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def workers(self) -> int: ...


def load_encoder(run: str | Path, checkpoint: str | None = None) -> tuple[ResNet, TrainConfig, Path]:
    """The encoder of a run's checkpoint in evaluation mode, the run's config, and which checkpoint it was.

    ``checkpoint`` is a number of steps, a name or a path; None is the newest whole one. ``UserError`` where ``run`` is
    no run or has no such checkpoint.
    """
    require_run(Path(run))
    config = configs.load(Path(run))
    encoder = resnet(config.model.arch, width=config.model.width, stem=config.model.stem)
    found = checkpoints.listed(Path(run) / "checkpoints")
    for path in reversed(found if checkpoint is None else [_named(Path(run), checkpoint, found)]):
        try:
            tensors = load_file(path / "model.safetensors")
        except (OSError, SafetensorError) as error:
            if checkpoint is not None:
                raise UserError(f"the checkpoint {path} is damaged ({error}): leave out --checkpoint.") from error
            continue
        own = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
        checkpoints.load_weights(encoder, own, str(path))
        return encoder.eval(), config, path
    raise UserError(f"{run} has no whole checkpoint: train it, or --resume it, first.")


def _named(run: Path, asked: str, found: list[Path]) -> Path:
    """The checkpoint of ``found`` that ``asked`` means."""
    name = f"{checkpoints.PREFIX}{int(asked):08d}" if asked.isdecimal() else Path(asked).name
    for path in found:
        if path.name == name and (os.sep not in asked or path.resolve() == Path(asked).resolve()):
            return path
    there = ", ".join(path.name for path in found) or "none"
    raise UserError(f"--checkpoint {asked}: {run} has no such checkpoint; it has {there}.")


def evaluate_run(options: Options) -> dict[str, Any]:
    """Accuracy in percent of ``options.method`` on the validation split, with the training split as the bank."""
    encoder, config, path = load_encoder(options.run, options.checkpoint)
    device = resolve_device(options.device)
    encoder.to(device)
    if options.data is not None:
        config = replace(config, data=replace(config.data, data=options.data, val_data=None))
    if options.val_data is not None:
        config = replace(config, data=replace(config.data, val_data=options.val_data))
    data = open_data(config)
    if reason := obstacle(data.train, data.validation, bank_where=data.where, queries_where=data.validation_where):
        raise UserError(f"no accuracy: {reason}")
    assert data.validation is not None
    _check(options, data.train)
    bank, queries = (
        extract(encoder, source, image_size=config.data.image_size, device=device, workers=options.workers)
        for source in (data.train, data.validation)
    )
    train_ND, labels_N, _ = bank
    if options.method == "knn":
        predicted_M = knn_predict(train_ND, labels_N, queries.features_NF, options.k, options.temperature)
    else:
        if options.labels_per_class:
            chosen = few_labels(labels_N, options.labels_per_class, seed=config.run.seed)
            train_ND, labels_N = train_ND[chosen], labels_N[chosen]
        predicted_M = linear_predict(train_ND, labels_N, queries.features_NF)
    return {
        "method": options.method,
        "accuracy": accuracy(predicted_M, queries.labels_N),
        "bank": len(train_ND),
        "queries": len(queries.labels_N),
        "classes": len(data.train.classes),
        "faults": bank.faults + queries.faults,
        "checkpoint": str(path),
    }


def _check(options: Options, train: Source) -> None:
    """``UserError`` for the first of the method's settings that ``train`` cannot serve, before anything is computed."""
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: give 0 for one a core, or more.")
    if options.method == "knn":
        if not 1 <= options.k <= len(train):
            raise UserError(f"--k {options.k}: give between 1 and the bank's {len(train)} images.")
        if not options.temperature > 0:
            raise UserError(f"--temperature {options.temperature}: give more than 0.")
        return
    if options.labels_per_class < 0:
        raise UserError(f"--labels-per-class {options.labels_per_class}: give 0 for all, or more.")
    if options.labels_per_class and (reason := too_few(train, options.labels_per_class)):
        raise UserError(f"--labels-per-class {options.labels_per_class}: {reason}")
