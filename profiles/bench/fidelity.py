"""What storing images in another form does to a trained encoder's features: kNN accuracy and nearest neighbours.

Every form is written by ``convert``, and its images, bank and queries alike, go through the same encoder.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import Features, extract
from fastvicreg.evaluate.knn import knn_predict, nearest
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.sources import find_splits, open_source
from fastvicreg.pretrained import load_trained
from fastvicreg.profiles.bench.registry import Benchmark, Output

COLUMNS = ("form", "images", "mean_bytes", "knn", "difference", "spread", "changed", "neighbours", "cosine")
FORMS: dict[str, Settings | None] = {
    "as they are": None,
    "quality 90": Settings(reencode=True),
    "500, quality 90": Settings(max_size=500, reencode=True),
    "400, quality 90": Settings(max_size=400, reencode=True),
    "500, pixels": Settings(max_size=500, raw=True),
}
"""Names of the forms; the numbers are the longest side in pixels."""
K = 20
"""Neighbours that vote, and that are compared."""


def run(run: str | None = None, data: str | None = None, size: int = 224, workers: int = 0) -> Iterator[dict[str, Any]]:
    """One row a form.

    With labelled train/ and val/: ``knn`` in %, its ``difference`` to the images as they are with the standard error of
    the paired difference as ``spread``, and ``changed``, the % of the queries that are taken for another class. Always:
    ``neighbours``, the % of the ``K`` nearest neighbours of an image that are the same, and the features' ``cosine``.
    """
    if not run or not data:
        raise UserError("bench fidelity compares features of a trained encoder: give --run RUN and --data DATA.")
    encoder = load_trained(run).encoder
    train, validation = find_splits(data)
    parts = [train] if validation is None else [train, validation]
    first: list[Features] = []
    told: Tensor | None = None
    for form, settings in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            sources = [_stored(path, settings, Path(folder) / f"{at}.beton") for at, path in enumerate(parts)]
            found = [extract(encoder, source, image_size=size, workers=workers) for source in sources]
            images = sum(map(len, sources))
            row: dict[str, Any] = {"form": form, "images": images, "mean_bytes": _mean_bytes(sources)}
        first = first or found
        bank, queries = found[0], found[-1]
        row["neighbours"] = 100 * _common(first, found)
        row["cosine"] = float(nn.functional.cosine_similarity(first[-1].features_NF, queries.features_NF).mean())
        if validation is not None:
            predicted = knn_predict(bank.features_NF, bank.labels_N, queries.features_NF, K)
            told = predicted if told is None else told
            row |= _accuracy(predicted, told, queries.labels_N)
        yield row


def _stored(path: Path, settings: Settings | None, place: Path) -> Source:
    if settings is None:
        return open_source(path)
    summary = convert_dataset(path, place, settings)
    if summary.skipped:
        raise UserError(f"{path} has images that cannot be stored ({summary.skipped[0].path}): leave them out.")
    return open_source(place)


def _mean_bytes(sources: list[Source]) -> int:
    total = sum(len(source.encoded(index)) for source in sources for index in range(len(source)))
    return total // sum(map(len, sources))


def _common(first: list[Features], found: list[Features]) -> float:
    """Mean share of the ``K`` nearest in the bank that stay; an image of the bank is not its own neighbour."""
    alone = len(found) == 1
    lists = []
    for bank, queries in ((first[0], first[-1]), (found[0], found[-1])):
        index_MK = nearest(bank.features_NF, queries.features_NF, K + alone)[1]
        lists.append([set(row) - ({at} if alone else set()) for at, row in enumerate(index_MK.tolist())])
    return sum(len(one & other) / K for one, other in zip(*lists, strict=True)) / len(lists[0])


def _accuracy(predicted_M: Tensor, before_M: Tensor, labels_M: Tensor) -> dict[str, float]:
    right_M, was_M = (predicted_M == labels_M).double(), (before_M == labels_M).double()
    difference_M = 100 * (right_M - was_M)
    return {
        "knn": 100 * float(right_M.mean()),
        "difference": float(difference_M.mean()),
        "spread": float(difference_M.std()) / math.sqrt(len(difference_M)),
        "changed": 100 * float((predicted_M != before_M).double().mean()),
    }


@dataclass(frozen=True)
class BenchOptions(Output):
    """What storing images in another form does to a trained encoder's features."""

    run: str | None = None
    """Run, export or file of weights."""
    data: str | None = None
    """Images; with labelled train/ and val/ kNN accuracy is measured too."""
    size: int = 224
    """Side of the images that the encoder sees, in pixels."""
    workers: int = 0
    """Decoding threads; 0: one a core."""


BENCHMARK = Benchmark(
    run, COLUMNS, key=("form", "images"), figure="neighbours", better="higher", options=BenchOptions,
    title="in %; difference: to the images as they are, spread: its standard error",
)  # fmt: skip
