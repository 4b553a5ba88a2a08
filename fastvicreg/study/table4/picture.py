"""Table 4's collapse and recovery as a picture: bars of the embeddings' spread and of kNN, one a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvicreg.errors import UserError
from fastvicreg.study.table4.rows import COLUMNS, ROWS

COLOURS = {"none": "#d1495b", "var": "#e0a526", "varcov": "#1f6feb"}
INK, GREY = "#3d4550", "#8a94a3"


def draw(path: Path, rows: Sequence[Mapping[str, Any]], untrained: Mapping[str, Any]) -> None:
    """A PNG of three panels, rows of the table from left to right; lines are the seeds' smallest and largest.

    ``UserError`` where it cannot be written.
    """
    from matplotlib.figure import Figure  # only here: importing it takes a second

    names = [name for name in ROWS if any(row["row"] == name for row in rows)]
    figure = Figure(figsize=(max(5.0, 1.25 * len(names) + 1), 8), layout="constrained")
    spread_axes, raw_axes, knn_axes = figure.subplots(3, 1, sharex=True)
    for axes, figure_name, label in (
        (spread_axes, "std_normalized", "normalised std of the embeddings\n(share of 1/sqrt(D))"),
        (raw_axes, "std", "std of the embeddings, raw\n(VICReg's target: 1)"),
        (knn_axes, "knn", "kNN of the features, %"),
    ):
        for position, (column, heading) in enumerate(COLUMNS.items()):
            own = [row for row in rows if row["column"] == column and row[figure_name] is not None]
            if not own:
                continue
            x = [names.index(row["row"]) + (position - 1) * 0.27 for row in own]
            values = [row[figure_name] for row in own]
            ranges = [row["spread"][figure_name] for row in own]
            below = [value - low for value, (low, _) in zip(values, ranges, strict=True)]
            above = [high - value for value, (_, high) in zip(values, ranges, strict=True)]
            drawn = axes.bar(x, values, 0.25, color=COLOURS[column], label=heading, yerr=(below, above), ecolor=INK)
            form = {"std_normalized": "{:.2f}", "std": "{:.2g}"}.get(figure_name, "{:.0f}")
            axes.bar_label(drawn, fmt=form, padding=2, fontsize=7, color=INK)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.12)
    for axes in (spread_axes, raw_axes):
        axes.axhline(1.0, color=GREY, linestyle=":", linewidth=1)
    raw_axes.set_yscale("log")
    knn_axes.axhline(untrained["knn"], color=GREY, linestyle="--", linewidth=1, label="random network")
    handles, labels = knn_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4 if len(names) > 3 else 2, frameon=False)
    knn_axes.set_xticks(range(len(names)), [ROWS[name].title.replace(": ", "\n") for name in names])
    knn_axes.set_xlim(-0.6, len(names) - 0.4)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"cannot write the picture to {path}: {error.strerror}.") from error
