"""kNN and linear accuracy of every row as a picture, with the published figures where there are some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvicreg.errors import UserError

COLOURS = {"knn": "#1f6feb", "linear": "#e0a526"}
HEADINGS = {"knn": "kNN", "linear": "linear"}
INK, GREY = "#3d4550", "#8a94a3"


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A PNG of horizontal bars, one pair a row from top to bottom; lines are the seeds' smallest and largest.

    ``UserError`` where it cannot be written.
    """
    from matplotlib.figure import Figure  # only here: importing it takes a second

    figure = Figure(figsize=(8, 1.2 + 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for at, name in enumerate(HEADINGS):
        own = [(place, row) for place, row in enumerate(rows) if row[name] is not None]
        y = [place + (at - 0.5) * 0.38 for place, _ in own]
        values = [row[name] for _, row in own]
        below = [row[name] - row["spread"][name][0] for _, row in own]
        above = [row["spread"][name][1] - row[name] for _, row in own]
        drawn = axes.barh(y, values, 0.36, color=COLOURS[name], label=HEADINGS[name], xerr=(below, above), ecolor=INK)
        axes.bar_label(drawn, fmt="{:.1f}", padding=3, fontsize=7, color=INK)
    told = [(place, row["published_linear"]) for place, row in enumerate(rows) if row["published_linear"]]
    if told:
        axes.plot(
            [value for _, value in told], [place for place, _ in told], "D", color=INK, ms=5, label="linear, published"
        )
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on the test images, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"cannot write the picture to {path}: {error.strerror}.") from error
