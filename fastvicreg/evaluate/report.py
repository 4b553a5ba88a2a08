"""An evaluation as one self-contained HTML page: figures with intervals, class by class, and what is taken for what."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text

from fastvicreg.errors import UserError
from fastvicreg.evaluate.frozen import Evaluated
from fastvicreg.provenance import cpu_name, versions
from fastvicreg.show.drawing import GREY, OWN, plt, svg
from fastvicreg.show.page import page

NAMED = 60
"""Classes that a picture names; of more it shows the matrix alone."""
PAIRS = 20
"""Mistakes that are listed, most frequent first."""


def write_html(path: Path, title: str, evaluated: Evaluated, settings: Mapping[str, Any]) -> None:
    """Write the page; ``UserError`` where its place cannot be written."""
    facts = ", ".join(f"{name}: {value}" for name, value in evaluated.facts.items())
    lines = [*evaluated.published, *evaluated.notes]
    body = f"<h1>{_text(title)}</h1><p class='lead'>{_text(facts)}</p>"
    body += "".join(f"<p>{_text(line)}</p>" for line in lines)
    body += f"<section><h2>Figures in %</h2>{_rows(evaluated)}</section>"
    if evaluated.robustness:
        body += f"<section><h2>Other images, in %</h2>{_table(evaluated.robustness)}</section>"
    if evaluated.count_CC is not None:
        body += _class_sections(evaluated)
    given = ", ".join(f"{name} {value}" for name, value in settings.items())
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    made = f"<p>{_text(given)}</p><p>{_text(cpu_name())}. {_text(packages)}.</p>"
    body += f"<section><h2>How this was made</h2>{made}</section>"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(_printable(title), body), "utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report {path}: {error.strerror}.") from error


def settings_shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of a table of ``rows``, without the bounds of intervals."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if not name.endswith(("_low", "_high"))]


def described(row: Mapping[str, Any]) -> str:
    """What sets a row apart, such as "k 20" or "lr 0.1 epoch 7 which best"."""
    names = [name for name in settings_shown([row]) if f"{name}_low" not in row]
    return " ".join(f"{name} {cell(row, name)}" for name in names)


def cell(row: Mapping[str, Any], name: str) -> str:
    """A figure with its interval, such as "73.20 (72.81-73.59)"."""
    value = row.get(name, "")
    if not isinstance(value, float):
        return str(value)
    if f"{name}_low" in row:
        return f"{value:.2f} ({row[f'{name}_low']:.2f}-{row[f'{name}_high']:.2f})"
    return f"{value:g}" if name in ("lr", "temperature") else f"{value:.2f}"


def _class_sections(evaluated: Evaluated) -> str:
    assert evaluated.count_CC is not None
    count_CC = evaluated.count_CC.numpy()
    asked = count_CC.sum(1).nonzero()[0]
    seen = np.union1d(asked, count_CC.sum(0).nonzero()[0])
    names = [_name(evaluated.classes, number) for number in seen]
    share = count_CC[np.ix_(seen, seen)] / count_CC[seen].sum(1, keepdims=True).clip(1) * 100
    explained = "<p>A row is a class, a column what its images were taken for, in % of the row.</p>"
    taken = f"{explained}{_confusion(share, names)}{_mistakes(count_CC, evaluated.classes)}"
    parts = [f"<section><h2>What is taken for what</h2>{taken}</section>"]
    if len(evaluated.by_class) <= NAMED:
        parts.append(f"<section><h2>Class by class</h2>{_bars(evaluated.by_class)}</section>")
    ordered = sorted(evaluated.by_class, key=lambda row: row["accuracy"])
    parts.append(f"<section><h2>All classes, hardest first</h2>{_table(ordered)}</section>")
    return "".join(parts)


def _rows(evaluated: Evaluated) -> str:
    return _table(evaluated.rows, evaluated.chosen if evaluated.by_class else -1)


def _table(rows: Sequence[Mapping[str, Any]], own: int = -1) -> str:
    columns = settings_shown(rows)
    head = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in columns)
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td>{_text(cell(row, name))}</td>" for name in columns)
        lines.append(f"<tr{' class=own' if place == own else ''}>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _mistakes(count_CC: np.ndarray, classes: Sequence[str]) -> str:
    """The most frequent mistakes as a table."""
    wrong = count_CC.copy()
    np.fill_diagonal(wrong, 0)
    places = wrong.ravel().argsort()[::-1][:PAIRS]
    rows = [
        {
            "class": _name(classes, place // len(wrong)),
            "taken for": _name(classes, place % len(wrong)),
            "images": int(n),
        }
        for place, n in zip(places, wrong.ravel()[places], strict=True)
        if n
    ]
    return f"<h2>The most frequent mistakes</h2>{_table(rows)}" if rows else ""


def _confusion(share: np.ndarray, names: Sequence[str]) -> str:
    side = min(12.0, 4 + 0.3 * len(names))
    figure, ax = plt.subplots(figsize=(side + 1, side), layout="constrained")
    shown = ax.imshow(share, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    figure.colorbar(shown, ax=ax, label="% of the row", shrink=0.7)
    if len(names) <= NAMED:
        _named_ticks(ax, names)
        ax.set_xticks(range(len(names)), [_printable(name) for name in names], rotation=90, fontsize=8)
        _no_formulas(ax.get_xticklabels())
    if len(names) <= 20:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                colour = "white" if value > 55 else "#1c2430"
                ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ax.set(xlabel="taken for", ylabel="class")
    return svg(figure)


def _bars(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy of each class with its interval, best at the top."""
    ordered = sorted(rows, key=lambda row: row["accuracy"])
    figure, ax = plt.subplots(figsize=(8, 1 + 0.25 * len(ordered)), layout="constrained")
    value, low, high = (
        np.array([row[key] for row in ordered]) for key in ("accuracy", "accuracy_low", "accuracy_high")
    )
    ax.barh(range(len(ordered)), value, color=OWN, height=0.7)
    errors = np.stack([value - low, high - value]).clip(0)
    ax.errorbar(value, range(len(ordered)), xerr=errors, fmt="none", ecolor=GREY, capsize=2)
    _named_ticks(ax, [row["class"] for row in ordered])
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(xlabel="accuracy in %, with its 95 % interval", xlim=(0, 100))
    return svg(figure)


def _named_ticks(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), [_printable(name) for name in names], fontsize=8)
    _no_formulas(ax.get_yticklabels())


def _no_formulas(labels: Sequence[Text]) -> None:
    for label in labels:
        label.set_parse_math(False)  # a $ in a class's name


def _name(classes: Sequence[str], number: int) -> str:
    return classes[number] if number < len(classes) else str(number)


def _printable(text: str) -> str:
    """``text`` without what no XML holds: control characters, and bytes that are no text."""
    readable = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else " " for c in readable)


def _text(value: object) -> str:
    return html.escape(_printable(str(value)))
