"""The whole story on embedded images: train, compare with what needs no training, switch a term off, report."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from fastvicreg.config import TrainConfig
from fastvicreg.datasets import Datasets, open_data
from fastvicreg.doctor import pipeline_finding
from fastvicreg.encoders import build_encoder
from fastvicreg.evaluate.features import Features, extract
from fastvicreg.evaluate.knn import accuracy, knn_predict
from fastvicreg.evaluate.linear import few_labels, linear_predict
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.presets import preset
from fastvicreg.pretrained import load_encoder
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import read
from fastvicreg.train.assemble import as_module
from fastvicreg.train.device import resolve_device
from fastvicreg.train.trainer import Trainer

FEW = 10
DRAWS = 5
COLLAPSE_EPOCHS = 2
PROBES = ("knn", "linear", "few")
HEADINGS = {"knn": "kNN", "linear": "linear", "few": f"{FEW} labels a class", "embedding_std": "embedding std"}


@dataclass(frozen=True)
class Story:
    """All that the report shows."""

    folder: Path
    main: Path
    collapse: Path
    rows: list[dict[str, Any]]  # features, knn, linear, few, embedding_std
    features: Features  # of the test split, by the trained encoder
    classes: tuple[str, ...]
    seconds: Mapping[str, float]
    stopped: int | None = None


class PixelStatistics(nn.Module):
    """Each channel's mean and standard deviation: what a photograph's brightness and contrast alone give away."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([x_BCHW.mean((2, 3)), x_BCHW.std((2, 3))], 1)


def probe(bank: Features, queries: Features, *, euclidean: bool = False) -> dict[str, float]:
    """kNN, linear and few-label accuracy in percent.

    ``euclidean`` compares standardised features by distance, which suits two numbers better than an angle does.
    """
    (bank_ND, labels_N, _), (query_MD, answers_M, _) = bank, queries
    knn_bank, knn_query = bank_ND, query_MD
    if euclidean:
        mean, std = bank_ND.mean(0), bank_ND.std(0).clamp_min(1e-6)
        # Far from the origin the angle between two points grows with their distance alone.
        knn_bank, knn_query = (
            torch.cat([(x - mean) / std, x.new_full((len(x), 1), 10.0)], 1) for x in (bank_ND, query_MD)
        )
    few = []
    for draw in range(DRAWS):
        chosen = few_labels(labels_N, FEW, seed=draw)
        few.append(accuracy(linear_predict(bank_ND[chosen], labels_N[chosen], query_MD, l2=1e-2), answers_M))
    return {
        "knn": accuracy(knn_predict(knn_bank, labels_N, knn_query), answers_M),
        "linear": accuracy(linear_predict(bank_ND, labels_N, query_MD), answers_M),
        "few": statistics.mean(few),
    }


def tell(folder: Path, *, seed: int = 0, epochs: int = 0, display: Display) -> Story:
    """Train twice in ``folder`` (run/ and collapse/) and probe; ``epochs`` 0 takes the preset's."""
    config = preset("demo").config
    config = replace(
        config,
        data=replace(config.data, pipeline=_pipeline(display)),
        run=replace(config.run, seed=seed, epochs=epochs or config.run.epochs),
    )
    data = open_data(config)
    display.note(
        f"{len(data.train):,} training and {len(data.validation or ()):,} test patches of {len(data.train.classes)} "
        f"photographs, written as image files: {data.where}"
    )
    seconds = {}
    began = time.perf_counter()
    main, collapse = folder / "run", folder / "collapse"
    outcome = Trainer(config, main, resume=False, display=display).train()
    seconds["training"] = time.perf_counter() - began
    began = time.perf_counter()
    if not outcome.signal:
        display.note("the same with variance weight 0, shortly: the embeddings collapse")
        assert isinstance(config.method, VICRegConfig)
        method = replace(config.method, variance=0.0)
        short = replace(config.run, epochs=min(COLLAPSE_EPOCHS, config.run.epochs))
        second = replace(config, method=method, run=short)
        outcome = Trainer(second, collapse, resume=False, display=display).train()
        seconds["training without the variance term"] = time.perf_counter() - began
    began = time.perf_counter()
    if outcome.signal:
        return Story(folder, main, collapse, [], Features(torch.empty(0), torch.empty(0)), (), seconds, outcome.signal)
    rows, features = compare(config, data, main, collapse)
    seconds["evaluation"] = time.perf_counter() - began
    return Story(folder, main, collapse, rows, features, data.train.classes, seconds)


def _pipeline(display: Display) -> str:
    """ffcv where it delivers here, else native and why."""
    found = pipeline_finding("ffcv")
    if found.works:
        return "ffcv"
    display.note(f"pipeline native, since ffcv does not run here ({found.seen}); {found.remedy}")
    return "native"


def compare(config: TrainConfig, data: Datasets, main: Path, collapse: Path) -> tuple[list[dict[str, Any]], Features]:
    """Rows of the table, weakest knowledge first, and the trained encoder's test features."""
    torch.manual_seed(config.run.seed)
    untrained = as_module(build_encoder(config.encoder))
    trained, collapsed = load_encoder(main), load_encoder(collapse)
    steps, collapse_steps = (_steps(run) for run in (main, collapse))
    candidates: list[tuple[str, nn.Module, bool, float | None]] = [
        ("raw pixels", nn.Flatten(), False, None),
        ("mean and std of pixels", PixelStatistics(), True, None),
        ("random network", untrained, False, steps[0]["embedding_std"]),
        ("without variance term", collapsed, False, collapse_steps[-1]["embedding_std"]),
        (f"VICReg, {config.run.epochs} epochs", trained, False, steps[-1]["embedding_std"]),
    ]
    assert data.validation is not None
    rows, features = [], None
    device = resolve_device(config.run.device)
    for name, encoder, euclidean, std in candidates:
        bank, features = (
            extract(encoder.to(device), source, image_size=config.data.image_size, device=device)
            for source in (data.train, data.validation)
        )
        rows.append({"features": name, **probe(bank, features, euclidean=euclidean), "embedding_std": std})
    assert features is not None
    return rows, features


def _steps(run: Path) -> list[dict[str, Any]]:
    return [row for row in read(run) if "total" in row]


def over_seeds(stories: Sequence[Story]) -> list[dict[str, Any]]:
    """One row a kind of features: the mean over the stories, and each figure's smallest and largest as ``spread``."""
    rows = []
    for same in zip(*(story.rows for story in stories), strict=True):
        row: dict[str, Any] = {"features": same[0]["features"]}
        spread = {}
        for name in HEADINGS:
            values = [one[name] for one in same]
            row[name] = None if None in values else statistics.mean(values)
            spread[name] = None if None in values else [min(values), max(values)]
        rows.append(row | {"spread": spread})
    return rows


def table(rows: Sequence[Mapping[str, Any]], seeds: int = 1) -> Table:
    """The comparison as a terminal table; the last row is the trained encoder's."""
    over = f", mean over {seeds} seeds" if seeds > 1 else ""
    shown = Table(title=f"frozen features, accuracy on unseen tiles in %{over}", title_justify="left")
    shown.add_column("features", no_wrap=True)
    for heading in HEADINGS.values():
        shown.add_column(heading, justify="right")
    for row in rows:
        std = "" if row["embedding_std"] is None else f"{row['embedding_std']:.3g}"
        style = "bold" if row is rows[-1] else ""
        shown.add_row(row["features"], *(f"{row[name]:.1f}" for name in PROBES), std, style=style)
    return shown
