"""A summary's breakdown as a picture: the stages of a step above what the device did in it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from fastvicreg.errors import UserError
from fastvicreg.profiles.charts import require_picture
from fastvicreg.profiles.trace.gaps import LABELS
from fastvicreg.profiles.trace.page_colours import CAUSE_COLOURS
from fastvicreg.profiles.trace.summary import Summary

_PART_COLOURS = {"compute": "#1f6feb", "comm": "#8957e5", "copy": "#2da44e"}
_STAGE_COLOURS = {"data": "#d1495b", "forward": "#1f6feb", "loss": "#54aeff", "backward": "#0a3069", "optim": "#8957e5"}
"""By a word in the stage's name, so that a stage looks alike in every trace."""
_FURTHER_COLOURS = ("#2da44e", "#e07a3f", "#3aa6b9", "#edae49", "#bf8700", "#6e7781")
_OTHER_COLOUR = "#e6e9ee"
_LEAST_LABELLED = 0.04
_LEAST_NAMED = 0.001


class _Piece(NamedTuple):
    name: str
    share: float
    colour: str
    idle: bool = False


def write_bars(summaries: Sequence[Summary], path: str) -> None:
    """Two bars a trace, shares of the step.

    ``UserError`` where ``path`` is no picture's name or cannot be written.
    """
    require_picture(path)
    figure = Figure(figsize=(13, 0.6 + 2.1 * len(summaries)), layout="constrained")
    axes = figure.subplots(len(summaries), 2, squeeze=False, width_ratios=(2.4, 1))
    for (ax, beside), summary in zip(axes, summaries, strict=True):
        _draw(ax, beside, summary)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastvicreg"}):
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # The legends stand beside the axes.
            figure.savefig(
                path, dpi=150, bbox_inches="tight", metadata={"Date": None} if path.lower().endswith(".svg") else None
            )
        except OSError as error:
            raise UserError(f"cannot write the picture to {path}: {error.strerror}") from error


def _draw(ax: Axes, beside: Axes, summary: Summary) -> None:
    rows = {"stages": _stages(summary)}
    if summary.device_shares and summary.idle_by:
        parts = [_Piece(name, summary.device_shares[name], colour) for name, colour in _PART_COLOURS.items()]
        causes = [
            _Piece(f"idle: {LABELS[name]}", summary.idle_by[name], colour, idle=True)
            for name, colour in CAUSE_COLOURS.items()
        ]
        rows["device"] = parts + causes
    beside.set_axis_off()
    for place, (title, pieces) in enumerate(rows.items()):
        handles = _bar(ax, place, pieces)
        labels = [handle.get_label() for handle in handles]
        look = {"fontsize": 8, "title_fontsize": 8, "alignment": "left", "frameon": False, "handlelength": 1.3}
        anchor = {"loc": "center left", "bbox_to_anchor": (0.58 * place, 0.5)}
        beside.add_artist(Legend(beside, handles, labels, title=title, **look, **anchor))
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=rows)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(length=0)
    title = f"{summary.trace.path.name}: {summary.step_ms['p50']:,.1f} ms a step, {summary.verdict.bound}-bound"
    ax.set_title(title, loc="left", fontsize=10)


def _stages(summary: Summary) -> list[_Piece]:
    further = itertools.cycle(_FURTHER_COLOURS)
    pieces = []
    for name, share in summary.stage_shares.items():
        known = (colour for word, colour in _STAGE_COLOURS.items() if word in name.lower())
        colour = _OTHER_COLOUR if name == "other" else next(known, None) or next(further)
        pieces.append(_Piece(name.removeprefix("fv."), share, colour))
    return pieces


def _bar(ax: Axes, row: int, pieces: Sequence[_Piece]) -> list[Any]:
    """Draw the pieces side by side; returns what a legend names them by."""
    left, handles = 0.0, []
    for name, share, colour, idle in pieces:
        bar = ax.barh(row, share, 0.72, left, color=colour, edgecolor="white", hatch="///" if idle else None)
        if share >= _LEAST_LABELLED:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "boxstyle": "round,pad=0.2"}
            ax.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=8, bbox=box)
        if share >= _LEAST_NAMED:
            bar.set_label(f"{name if len(name) <= 24 else name[:21] + '...'} {share:.1%}")
            handles.append(bar)
        left += share
    return handles
