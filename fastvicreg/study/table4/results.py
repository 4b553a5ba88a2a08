"""What Table 4's runs gave: medians and spread over seeds, beside the paper's column, and which directions agree."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.table import Table

from fastvicreg.study.table4.rows import COLUMNS, ROWS, SPREAD, parted

FIGURES = {
    "std": "std",
    "std_normalized": "normalised",
    "rankme_embedding": "rank z",
    "rankme": "RankMe",
    "knn": "kNN",
    "linear": "linear",
}
"""Names of the figures to their headings, in the table's order."""

ERRORS = 2
"""Standard errors within which two accuracies are not told apart."""
COLLAPSED = 0.1
"""Value of a method's ``SPREAD`` figure below which embeddings count as collapsed."""


def summary(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row a cell: each figure's median over the seeds that gave one, smallest and largest, and every seed's.

    ``collapsed`` says whether the median of the method's ``SPREAD`` figure is below ``COLLAPSED``, or every seed
    diverged.
    """
    rows = []
    for cell, runs in found.items():
        row, column = parted(cell)
        whole = [run for run in runs if "knn" in run]
        values = {name: [run[name] for run in whole] for name in FIGURES}
        medians = {name: statistics.median(held) if held else None for name, held in values.items()}
        rows.append(
            {
                "row": row,
                "column": column,
                "paper_linear": ROWS[row].paper[tuple(COLUMNS).index(column)],
                **medians,
                "collapsed": not whole or medians[SPREAD[ROWS[row].method]] < COLLAPSED,  # type: ignore[operator]
                "diverged": len(runs) - len(whole),
                "spread": {name: [min(held), max(held)] if held else None for name, held in values.items()},
                "seeds": values,
                "train_seconds": [run["train_seconds"] for run in runs],
            }
        )
    return rows


def directions(rows: Sequence[Mapping[str, Any]], *, images: int) -> list[dict[str, Any]]:
    """The paper's statements and whether these rows agree: which cells collapse, and what each term adds to linear.

    The paper's collapse counts as below any accuracy. ``agrees`` is None for what these runs do not tell: a difference
    within two standard errors of two accuracies over ``images``, or where the two cells' seeds overlap. Steps between
    cells of which one is missing are left out.
    """
    cells = {(row["row"], row["column"]): row for row in rows}
    told: list[dict[str, Any]] = []
    for (row, column), cell in cells.items():
        expected = cell["paper_linear"] is None
        told.append(
            {
                "what": "collapse",
                "row": row,
                "column": column,
                "paper": expected,
                "here": cell["collapsed"],
                "agrees": expected == cell["collapsed"],
            }
        )
    names = tuple(COLUMNS)
    for row in ROWS:
        for before, after in pairwise(names):
            if (row, before) not in cells or (row, after) not in cells:
                continue
            was, became = cells[row, before], cells[row, after]
            paper = (became["paper_linear"] or 0.0) - (was["paper_linear"] or 0.0)
            here = (became["linear"] or 0.0) - (was["linear"] or 0.0)
            told_apart = abs(here) > ERRORS * _standard_error(was, became, images) and not _overlap(was, became)
            told.append(
                {
                    "what": f"linear from {before} to {after}",
                    "row": row,
                    "column": after,
                    "paper": round(paper, 1),
                    "here": here,
                    "agrees": paper * here > 0 if told_apart else None,
                }
            )
    return told


def _standard_error(was: Mapping[str, Any], became: Mapping[str, Any], images: int) -> float:
    """That of the difference of two linear accuracies in percent; one that no run has counts as exact."""
    shares = [(cell["linear"] or 0.0) / 100 for cell in (was, became)]
    return 100 * math.sqrt(sum(share * (1 - share) for share in shares) / images)


def _overlap(was: Mapping[str, Any], became: Mapping[str, Any]) -> bool:
    first, second = (cell["spread"]["linear"] or [0.0, 0.0] for cell in (was, became))
    return first[0] <= second[1] and second[0] <= first[1]


def directions_in_words(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many of each kind of statement agree, and which do not."""
    lines = []
    for kind in dict.fromkeys(one["what"] for one in told):
        own = [one for one in told if one["what"] == kind]
        line = f"{kind}: as in the paper in {sum(one['agrees'] is True for one in own)} of {len(own)}"
        for told_as, agrees in (("the other way in", False), ("too near to tell in", None)):
            cells = [f"{one['row']}-{one['column']}" for one in own if one["agrees"] is agrees]
            line += f"; {told_as} {', '.join(cells)}" if cells else ""
        lines.append(line)
    return lines


def in_words(figures: Mapping[str, Any]) -> str:
    """One run's figures on a line."""
    if figures.get("diverged"):
        return f"diverged ({figures['diverged']})"
    spread = f"std {figures['std']:.3g}, normalised {figures['std_normalized']:.3f}"
    return f"{spread}, kNN {figures['knn']:.1f} %, linear {figures['linear']:.1f} %"


def table(rows: Sequence[Mapping[str, Any]], untrained: Mapping[str, Any], seeds: int) -> Table:
    """The comparison for a terminal; with several seeds each figure is median and [smallest, largest]."""
    over = f"median (least, most) of {seeds} seeds" if seeds > 1 else "one seed"
    shown = Table(
        title=f"Table 4, {over}; std normalised: 1 spread, 0 collapsed; paper: its linear", title_justify="left"
    )
    shown.add_column("method", no_wrap=True)
    shown.add_column("terms", no_wrap=True)
    for heading in FIGURES.values():
        shown.add_column(heading, justify="right", overflow="fold")
    shown.add_column("paper", justify="right", no_wrap=True)
    for position, row in enumerate(rows):
        paper = "collapse" if row["paper_linear"] is None else f"{row['paper_linear']:.1f}"
        figures = [_figure(name, row[name], row["spread"][name], seeds) for name in FIGURES]
        last = position + 1 == len(rows) or rows[position + 1]["row"] != row["row"]
        style = "red" if row["collapsed"] else ""
        title = ROWS[row["row"]].title
        shown.add_row(title, COLUMNS[row["column"]], *figures, paper, style=style, end_section=last)
    shown.add_row("random network", "", *(_figure(name, untrained[name], None, 1) for name in FIGURES), "")
    return shown


def _figure(name: str, value: float | None, spread: Sequence[float] | None, seeds: int) -> str:
    if value is None:
        return "diverged"
    form = {"std": ".3g", "std_normalized": ".3f"}.get(name, ".1f")
    shown = f"{value:{form}}"
    return f"{shown} [{spread[0]:{form}}, {spread[1]:{form}}]" if seeds > 1 and spread else shown
