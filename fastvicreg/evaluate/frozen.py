"""A finished run's encoder, loaded and evaluated on labelled images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file

from fastvicreg import checkpoint as checkpoints
from fastvicreg import config as configs
from fastvicreg.assemble import open_data, resolve_device
from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import extract
from fastvicreg.evaluate.knn import accuracy, knn_predict
from fastvicreg.evaluate.linear import few_labels, linear_predict
from fastvicreg.model import ResNet, resnet


class Options(Protocol):
    """What ``evaluate_run`` reads of the command's options."""

    @property
    def method(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def data(self) -> str | None: ...
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


def load_encoder(run: str | Path) -> tuple[ResNet, TrainConfig, Path]:
    """The encoder of a run's newest whole checkpoint, the run's config, and which checkpoint it was.

    ``UserError`` where ``run`` is no run or has no checkpoint yet.
    """
    config = configs.load(Path(run))
    encoder = resnet(config.model.arch, width=config.model.width, stem=config.model.stem)
    for path in reversed(checkpoints.listed(Path(run) / "checkpoints")):
        try:
            tensors = load_file(path / "model.safetensors")
        except (OSError, SafetensorError):
            continue
        own = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
        checkpoints.load_weights(encoder, own, str(path))
        return encoder, config, path
    raise UserError(f"{run} has no whole checkpoint: train it, or --resume it, first.")


def evaluate_run(options: Options) -> dict[str, Any]:
    """Accuracy in percent of ``options.method`` on the validation split, with the training split as the bank."""
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: give 0 for one a core, or more.")
    encoder, config, path = load_encoder(options.run)
    device = resolve_device(options.device)
    encoder.to(device)
    if options.data is not None:
        config = replace(config, data=replace(config.data, data=options.data, val_data=None))
    data = open_data(config)
    if data.validation is None or not data.train.classes:
        raise UserError(
            f"{data.where} has no labelled validation split: give --data with train/ and val/ class folders."
        )
    bank, queries = (
        extract(encoder, source, image_size=config.data.image_size, device=device, workers=options.workers)
        for source in (data.train, data.validation)
    )
    train_ND, labels_N, _ = bank
    if options.method == "knn":
        if not 1 <= options.k <= len(train_ND):
            raise UserError(f"--k {options.k}: give between 1 and the bank's {len(train_ND)} images.")
        if not options.temperature > 0:
            raise UserError(f"--temperature {options.temperature}: give more than 0.")
        predicted_M = knn_predict(train_ND, labels_N, queries.features_NF, options.k, options.temperature)
    else:
        if options.labels_per_class < 0:
            raise UserError(f"--labels-per-class {options.labels_per_class}: give 0 for all, or more.")
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
