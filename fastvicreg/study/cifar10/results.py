"""What the study's runs gave: medians and spread over seeds, with the views and the CPU time they took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fastvicreg.study.cifar10.rows import BASELINES, ROWS

FIGURES = ("knn", "linear", "std", "std_normalized", "rankme_embedding", "rankme")
COSTS = ("views", "cpu_seconds", "train_seconds", "evaluation_views", "evaluation_cpu_seconds")


def summary(found: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row of each (name, epochs): every figure's median, [smallest, largest] as ``spread``, and all seeds'.

    A run that diverged counts in ``diverged`` alone; a cost that is not known of a seed is left out of the median.
    """
    rows = []
    for (name, epochs), runs in found.items():
        whole = [run for run in runs if "knn" in run]
        values = {figure: [run[figure] for run in whole if figure in run] for figure in FIGURES}
        costs = {cost: [run[cost] for run in whole if run.get(cost) is not None] for cost in COSTS}
        published = ROWS[name].published.get(epochs) if name in ROWS else None
        rows.append(
            {
                "row": name,
                "title": title(name, epochs),
                "epochs": epochs or None,
                **{figure: statistics.median(held) if held else None for figure, held in (values | costs).items()},
                "published_linear": published,
                "diverged": len(runs) - len(whole),
                "spread": {figure: [min(held), max(held)] if held else None for figure, held in values.items()},
                "seeds": values | costs,
            }
        )
    return rows


def title(name: str, epochs: int) -> str:
    """A row's name for people."""
    if name in BASELINES:
        return BASELINES[name]
    return f"{ROWS[name].title}, {epochs} epochs" if epochs else ROWS[name].title


def in_words(figures: Mapping[str, Any]) -> str:
    """One run's figures on a line."""
    if figures.get("diverged"):
        return f"diverged ({figures['diverged']})"
    told = f"kNN {figures['knn']:.1f} %, linear {figures['linear']:.1f} %"
    if "std" in figures:
        told += f", std {figures['std']:.3g}"
    if figures.get("views"):
        told += f", {figures['views']:,} views in {figures['train_seconds']:.0f} s"
    if figures.get("cpu_seconds"):
        told += f", {figures['cpu_seconds']:.0f} CPU-seconds"
    return told


def table(rows: Sequence[Mapping[str, Any]], seeds: int) -> Table:
    """The comparison for a terminal; with several seeds accuracies are median and [smallest, largest]."""
    over = f"median (least, most) of {seeds} seeds" if seeds > 1 else "one seed"
    shown = Table(title=f"frozen features, accuracy in %, {over}", title_justify="left")
    shown.add_column("features", no_wrap=True)
    for heading in ("kNN", "linear", "std", "normalised", "rank z", "views trained", "CPU-seconds", "published"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(
            row["title"],
            _accuracy(row, "knn", seeds),
            _accuracy(row, "linear", seeds),
            _number(row["std"], ".3g"),
            _number(row["std_normalized"], ".3f"),
            _number(row["rankme_embedding"], ".1f"),
            _number(row["views"], ",.0f"),
            _number(row["cpu_seconds"], ",.0f"),
            _number(row["published_linear"], ".1f"),
        )
    return shown


def _accuracy(row: Mapping[str, Any], figure: str, seeds: int) -> str:
    if row[figure] is None:
        return "diverged"
    spread = row["spread"][figure]
    return f"{row[figure]:.1f}" + (f" [{spread[0]:.1f}, {spread[1]:.1f}]" if seeds > 1 else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
