"""The page's parts that need no script: verdict, breakdown, tables; every text from a trace is escaped here."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from fastvicreg.profiles.trace.gaps import LABELS
from fastvicreg.profiles.trace.page_colours import CAUSE_COLOURS, PART_COLOURS, stage_colours
from fastvicreg.profiles.trace.page_memory import memory_charts
from fastvicreg.profiles.trace.ranks import straggler
from fastvicreg.profiles.trace.summary import Summary
from fastvicreg.profiles.trace.text import notes

ROWS = 100
"""Kernels and operators in a table, at most."""
_NAME = 160
_LEAST_LABELLED = 0.07


class Cell(NamedTuple):
    """What a column shows, and the number it is sorted by."""

    text: str
    value: float | None = None


class Piece(NamedTuple):
    """A part of a bar; ``share`` is of the step."""

    name: str
    share: float
    colour: str
    idle: bool = False


def overview(summaries: Sequence[Summary]) -> str:
    """One row a trace, each a link to its part of the page; and which rank the others wait for."""
    rows = []
    for number, summary in enumerate(summaries):
        shares, ms = summary.device_shares or {}, summary.step_ms
        name = f'<a href="#trace-{number}">{escape(summary.trace.path.name)}</a>'
        if shares:
            name += _bar(
                [Piece(part, shares[part], colour) for part, colour in PART_COLOURS.items()] + _idle(summary), thin=True
            )
        parts = [_share(shares[part]) if shares else Cell("-") for part in ("compute", "comm", "copy", "idle")]
        rank = Cell("-" if summary.trace.rank is None else str(summary.trace.rank), summary.trace.rank)
        steps = Cell(str(len(summary.steps.names)), len(summary.steps.names))
        rows.append((name, rank, steps, _ms(ms["p50"]), _ms(ms["p95"]), *parts, Cell(summary.verdict.bound)))
    columns = ("trace", "rank", "steps", "p50 ms", "p95 ms", "compute", "comm", "copy", "idle", "bound by")
    line = straggler(summaries)
    return table("", columns, rows) + (f"<p class='note'>{escape(line)}</p>" if line else "")


def facts(summary: Summary) -> str:
    """Device, rank and step time in one line."""
    ms, count = summary.step_ms, len(summary.steps.names)
    where = (summary.device.name or "device without a name") if summary.device else "host only"
    steps = f"{count} step{'s' * (count != 1)}" if summary.steps.source != "trace" else "no step marked"
    found = [where, *([] if summary.trace.rank is None else [f"rank {summary.trace.rank}"]), steps]
    found += [f"p50 {ms['p50']:,.2f} ms", f"p95 {ms['p95']:,.2f} ms"]
    return " · ".join(f"<span>{escape(text)}</span>" for text in found)


def verdict(summary: Summary) -> str:
    """What holds the run back, its evidence, what to change, and the commands that prove it."""
    bound = summary.verdict.bound
    seen, _, advice = summary.verdict.text.partition(": ")[2].rpartition("; next: ")
    commands = [f"fastvicreg trace diff {shlex.quote(summary.trace.path.name)} AFTER.json.gz"]
    if any(name.startswith("fv.") for name in summary.stages.names):
        commands.insert(0, "fastvicreg bench swap ...   # the run's own options")
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes(summary))
    return (
        f'<div class="verdict" data-bound="{bound}"><strong>{escape(summary.verdict.title)}</strong>'
        f"<p>{escape(seen[:1].upper() + seen[1:])}.</p><p><b>Next:</b> {escape(advice)}</p>"
        f"<pre>{escape(chr(10).join(commands))}</pre></div>" + (f"<ul class='note'>{lines}</ul>" if lines else "")
    )


def breakdown(summary: Summary) -> str:
    """Stages, the device, and what its idle time waited for: a bar and a table each, shares of all steps."""
    names = list(summary.stage_shares)
    stages = [
        Piece(name, summary.stage_shares[name], colour)
        for name, colour in zip(names, stage_colours(names), strict=True)
    ]
    mean = float(summary.steps.ms.mean())
    launched = summary.stage_device_ms if summary.device else {}
    columns = ("stage", "host ms", "share", *(("device ms launched",) if launched else ()))
    rows = [
        (_swatch(p), _ms(p.share * mean), _share(p.share), *((_ms(launched.get(p.name, 0.0)),) if launched else ()))
        for p in stages
    ]
    parts = [_part("Stages of a step", stages, columns, rows)]
    if summary.device_shares and summary.idle_by and summary.gaps:
        busy = [
            Piece("comm, exposed" if name == "comm" else name, summary.device_shares[name], colour)
            for name, colour in PART_COLOURS.items()
        ]
        idle = _idle(summary)
        whole = Piece("idle", summary.device_shares["idle"], "var(--idle)", idle=True)
        shown = [(_swatch(p), _ms(p.share * mean), _share(p.share), Cell("")) for p in (*busy, whole)]
        total = summary.steps.windows.total
        for cause, piece in zip(CAUSE_COLOURS, idle, strict=True):
            name, us = summary.gaps.blamed.get(cause, ("", 0.0))
            blamed = Cell(f"{_cut(name, 60)} ({us / total:.1%} of the step)" if name and piece.share else "")
            shown.append((_swatch(piece, "idle: "), _ms(piece.share * mean), _share(piece.share), blamed))
        columns = ("device", "ms", "share", "most of it in")
        parts.append(_part("The device in a step", [*busy, *idle], columns, shown, "blamed"))
    elif summary.workers:
        parts.append(f"<div class='part'>{_workers(summary)}</div>")
    return f"<div class='parts'>{''.join(parts)}</div>"


def tables(summary: Summary) -> str:
    """Kernels, operators, memory, and beside a device the engine's threads: what the trace has of them."""
    count = len(summary.steps.names)
    found = []
    if summary.kernels:
        rows = [
            (
                escape(_cut(row.name, _NAME)),
                _share(row.share),
                Cell(f"{row.calls:,}", row.calls),
                Cell(f"{row.mean_us:,.1f}", row.mean_us),
                Cell(f"{row.ms / count:,.3f}", row.ms / count),
                Cell("-") if row.roofline is None else Cell(f"{row.roofline:.0%}", row.roofline),
            )
            for row in summary.kernels[:ROWS]
        ]
        columns = ("kernel", "share", "count", "mean µs", "ms a step", "of peak")
        found.append(table(_title("Kernels", len(summary.kernels)), columns, rows, "kernels"))
    if summary.operators:
        device = ("device ms a step",) if summary.device else ()
        columns = ("operator", "share", "calls", "own host ms a step", *device)
        rows = [
            (
                escape(_cut(row.name, _NAME)),
                _share(row.host_share),
                Cell(f"{row.calls:,}", row.calls),
                Cell(f"{row.host_ms / count:,.3f}", row.host_ms / count),
                *((Cell(f"{row.device_ms / count:,.3f}", row.device_ms / count),) if device else ()),
            )
            for row in summary.operators[:ROWS]
        ]
        found.append(table(_title("Operators", len(summary.operators)), columns, rows, "operators"))
    if summary.workers and summary.device:
        found.append(_workers(summary))
    found.append(memory_charts(summary))
    if summary.missing:
        lines = "".join(f"<li>{escape(line)}</li>" for line in summary.missing)
        found.append(f'<div class="block"><h3>What this trace does not contain</h3><ul class="note">{lines}</ul></div>')
    return "".join(found)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Cell]], kind: str = "") -> str:
    """The first column is HTML, escaped by the caller; the others are escaped here."""
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for first, *cells in rows:
        shown = "".join(_cell(cell) for cell in cells if isinstance(cell, Cell))
        lines.append(f"<tr><td>{first}</td>{shown}</tr>")
    head = f"<h3>{escape(title)}</h3>" if title else ""
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="block">{head}<div class="scroll"><table class="{kind}">{body}</table></div></div>'


def _workers(summary: Summary) -> str:
    count = len(summary.steps.names)
    columns = ("work", "threads", "calls", "ms a call", "ms a step, all threads")
    rows = [
        (
            escape(row.name),
            Cell(str(row.threads), row.threads),
            Cell(f"{row.calls:,}", row.calls),
            Cell(f"{row.ms / row.calls:,.3f}", row.ms / row.calls),
            Cell(f"{row.ms / count:,.2f}", row.ms / count),
        )
        for row in summary.workers
    ]
    return table("The engine's threads, beside the step", columns, rows, "workers")


def _part(
    title: str,
    pieces: Sequence[Piece],
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    kind: str = "",
) -> str:
    return f"<div class='part'><h3>{escape(title)}</h3>{_bar(pieces)}{table('', columns, rows, kind)}</div>"


def _idle(summary: Summary) -> list[Piece]:
    shares = summary.idle_by or {}
    return [Piece(LABELS[name], shares[name], colour, idle=True) for name, colour in CAUSE_COLOURS.items()]


def _bar(pieces: Sequence[Piece], *, thin: bool = False) -> str:
    spans = []
    for piece in pieces:
        if piece.share <= 0:
            continue
        text = f"{piece.share:.0%}" if piece.share >= _LEAST_LABELLED and not thin else ""
        idle = " class='idle'" if piece.idle else ""
        hint = escape(f"{'idle: ' * piece.idle}{piece.name} {piece.share:.1%}", quote=True)
        style = f"flex-grow:{piece.share:.6f};background-color:{piece.colour}"
        spans.append(f'<span{idle} style="{style}" title="{hint}">{text}</span>')
    return f"<div class='bar{' thin' * thin}'>{''.join(spans)}</div>"


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-v="{cell.value:.9g}"'
    return f"<td{value}>{escape(cell.text)}</td>"


def _swatch(piece: Piece, before: str = "") -> str:
    kind = "swatch idle" if piece.idle else "swatch"
    return f'<i class="{kind}" style="background-color:{piece.colour}"></i>{escape(before + _cut(piece.name, 60))}'


def _title(kind: str, count: int) -> str:
    return f"{kind}: {ROWS} of {count:,}" if count > ROWS else f"{kind}: {count}"


def _ms(value: float) -> Cell:
    return Cell(f"{value:,.2f}", value)


def _share(value: float) -> Cell:
    return Cell(f"{value:.1%}", value)


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 3] + "..."
