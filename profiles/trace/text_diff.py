"""What differs between two traces, and the longest functions of one, as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastvicreg.profiles.trace.diff import Change, Difference
from fastvicreg.profiles.trace.summary import Summary
from fastvicreg.profiles.trace.text import TOP, cut, line
from fastvicreg.profiles.trace.top import TopRow


def show_top(rows: Sequence[TopRow], title: str, summary: Summary, count: int, out: Console) -> None:
    """The first ``count`` rows; shares are of the steps' time."""
    table = Table(title=f"{title}: {min(count, len(rows))} of {len(rows)}", title_justify="left")
    device = any(row.device_ms for row in rows) and title != "kernels"
    kernels = title == "kernels"
    for column in (
        *("", "calls", "ms a step", "share"),
        *(() if kernels else ("with what it calls",)),
        *(("device ms a step",) if device else ()),
    ):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    steps, total = len(summary.steps.names), summary.steps.windows.total / 1e3
    for row in rows[:count]:
        cells = [f"{row.calls:,}", f"{row.own_ms / steps:,.3f}", f"{row.own_ms / total:.1%}"]
        cells += [] if kernels else [f"{row.whole_ms / steps:,.3f}"]
        cells += [f"{row.device_ms / steps:,.3f}"] if device else []
        table.add_row(Text(cut(row.name)), *cells)
    out.print(table)


def show_difference(difference: Difference, out: Console) -> None:
    """The sentence, then what differs, largest first."""
    line(out, difference.text, "bold yellow")
    for note in difference.notes:
        line(out, note, "dim")
    for title, kinds in (
        ("step and stages", ("step", "stage")),
        ("the device's time", ("device", "idle")),
        ("operators with their shapes, own host time", ("op host",)),
        ("operators with their shapes, device time", ("op device",)),
        ("kernels", ("kernel",)),
    ):
        always = kinds[0] in ("step", "device")
        rows = [c for c in difference.changes if c.kind in kinds and (always or c.differs)]
        if rows:
            out.print(_changes(title, rows[: None if always else TOP]))


def _changes(title: str, rows: Sequence[Change]) -> Table:
    table = Table(title=f"{title} (ms a step: median, ± half the interquartile range)", title_justify="left")
    for column in ("", "A", "B", "B - A", ""):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for row in rows:
        a, b = (f"{t.ms:,.3f} ± {t.ms * t.spread / 2:,.3f}" for t in (row.a, row.b))
        name = f"idle: {row.name}" if row.kind == "idle" else row.name
        table.add_row(Text(cut(name)), a, b, f"{row.b.ms - row.a.ms:+,.3f}", "" if row.differs else "no difference")
    return table
