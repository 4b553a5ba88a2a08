"""A finished run's encoder, evaluated on labelled images by one of the protocols."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fastvicreg.datasets import open_data
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import extract
from fastvicreg.evaluate.knn import accuracy
from fastvicreg.evaluate.labels import obstacle
from fastvicreg.evaluate.protocols import FrozenProtocol
from fastvicreg.pretrained import load_trained
from fastvicreg.train.assemble import resolve_device


@dataclass(frozen=True)
class Evaluation:
    """Which run, on which images, computed where; the command's options have the same names."""

    run: str
    data: str | None = None
    val_data: str | None = None
    checkpoint: str | None = None
    arch: str | None = None
    stem: str | None = None
    device: str = "auto"
    workers: int = 0


def evaluate_run(asked: Evaluation, protocol: FrozenProtocol) -> dict[str, Any]:
    """Accuracy in percent by ``protocol`` on the validation split, with the training split as the bank.

    ``UserError`` where labels give no accuracy that means something, or a setting cannot be served.
    """
    if asked.workers < 0:
        raise UserError(f"--workers {asked.workers}: give 0 for one a core, or more.")
    trained = load_trained(asked.run, asked.checkpoint, arch=asked.arch, stem=asked.stem)
    if trained.run is None and asked.data is None:
        raise UserError(f"{trained.checkpoint} does not say which images it was trained on: give --data FOLDER.")
    config, device = trained.config, resolve_device(asked.device)
    encoder = trained.encoder.to(device)
    if asked.data is not None:
        config = replace(config, data=replace(config.data, data=asked.data, val_data=None, val_labels=None))
    if asked.val_data is not None:
        config = replace(config, data=replace(config.data, val_data=asked.val_data))
    data = open_data(config)
    if reason := obstacle(data.train, data.validation, bank_where=data.where, queries_where=data.validation_where):
        raise UserError(f"no accuracy: {reason}")
    assert data.validation is not None
    protocol.check(data.train)
    bank, queries = (
        extract(encoder, source, image_size=config.data.image_size, device=device, workers=asked.workers)
        for source in (data.train, data.validation)
    )
    bank_NF, labels_N = bank.features_NF, bank.labels_N
    if (chosen := protocol.choose(labels_N, seed=config.run.seed)) is not None:
        bank_NF, labels_N = bank_NF[chosen], labels_N[chosen]
    predicted_M = protocol.predict(bank_NF, labels_N, queries.features_NF)
    return {
        "accuracy": accuracy(predicted_M, queries.labels_N),
        "bank": len(bank_NF),
        "queries": len(queries.labels_N),
        "classes": len(data.train.classes),
        "faults": bank.faults + queries.faults,
        "checkpoint": str(trained.checkpoint),
        "passed_over": trained.passed_over,
        "notes": trained.notes,
    }
