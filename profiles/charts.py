"""Figures of a benchmark as horizontal bars, PNG or SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvicreg.errors import UserError

BAR, INK = "#1f6feb", "#3d4550"
KINDS = (".png", ".svg")


def require_picture(path: str | Path) -> None:
    """``UserError`` where ``path`` names neither a .png nor a .svg file."""
    if Path(path).suffix.lower() not in KINDS:
        raise UserError(f"--plot {path}: give a file that ends in {' or '.join(KINDS)}.")


def bars(path: str | Path, rows: Sequence[Mapping[str, Any]], *, label: Sequence[str], value: str, title: str) -> None:
    """One bar a row, named by the columns ``label``, as long as ``row[value]``, with its spread.

    ``UserError`` where ``path`` is no picture's name or cannot be written.
    """
    require_picture(path)
    from matplotlib import rc_context  # only here: importing it takes as long as a small measurement
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.38 * len(rows)), layout="constrained")
    ax = figure.subplots()
    values = [row[value] for row in rows]
    half = [row[value] * row.get("spread", 0.0) / 2 for row in rows]
    names = [" ".join(str(row[column]) for column in label) for row in rows]
    drawn = ax.barh(names, values, xerr=half, color=BAR, ecolor=INK, height=0.65)
    ax.bar_label(drawn, labels=[f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in values], padding=4, color=INK)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(title=title, xlabel=value.replace("_per_s", "/s").replace("_", " "))
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Text stays text in an SVG, and no date makes two drawings of the same figures differ.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastvicreg"}):
            figure.savefig(path, dpi=160, metadata={"Date": None} if str(path).lower().endswith(".svg") else None)
    except OSError as error:
        raise UserError(f"cannot write the picture to {path}: {error.strerror}.") from error
