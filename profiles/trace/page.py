"""``trace html``: one page that needs nothing else, with all that a summary tells and a timeline of some steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastvicreg import __version__
from fastvicreg.errors import UserError
from fastvicreg.profiles.trace import page_sections as sections
from fastvicreg.profiles.trace.page_colours import stage_colours
from fastvicreg.profiles.trace.page_timeline import EVENTS, LEAST_EVENTS, Timeline, timeline
from fastvicreg.profiles.trace.summary import Summary

_TREE = """<div class="block tree" hidden><h3>Calls in a stretch of time</h3>
<div class="tools"><output></output><button type="button" data-do="clear" hidden>no range</button>
<select aria-label="thread"></select>
<select aria-label="form"><option value="tree">by who called whom</option><option value="list">by name</option></select>
<label><input type="checkbox" checked>Python</label>
<input type="search" placeholder="find by name" aria-label="find a call"></div>
<div class="scroll"><table class="calls"><thead><tr></tr></thead><tbody></tbody></table></div></div>"""
STRIP = 120
"""Steps drawn side by side for choosing, at most."""


def write_page(summaries: Sequence[Summary], path: str | Path) -> Path:
    """The page of one or more traces (of several ranks, or of before and after), a tab each.

    ``UserError`` where it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file's name may hold bytes that are no text.
        path.write_bytes(page(summaries).encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"cannot write the page to {path}: {error.strerror}.") from error
    return path


def page(summaries: Sequence[Summary]) -> str:
    """The page's HTML: styles, script and data inline; nothing is fetched."""
    assert summaries
    share = max(EVENTS // len(summaries), LEAST_EVENTS)
    timelines = [timeline(summary, share) for summary in summaries]
    parts = [_trace(i, *pair) for i, pair in enumerate(zip(summaries, timelines, strict=True))]
    several = len(summaries) > 1
    title = f"{len(summaries)} traces" if several else summaries[0].trace.path.name
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: what holds it back</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>{_asset("page.css")}</style></head>
<body><main>
<h1>What holds this run back</h1>
{_several(summaries) if several else ""}
{"".join(parts)}
<footer>Shares are of all steps. Made by fastvicreg {escape(__version__)}; the same figures:
<code>fastvicreg trace summary --json</code>.</footer>
</main><div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="figures">{_json([summary.row() for summary in summaries])}</script>
<script type="application/json" id="timelines">{_json([one.content for one in timelines])}</script>
<script>{_asset("page_events.js")}</script>
<script>{_asset("page_rows.js")}</script>
<script>{_asset("page_draw.js")}</script>
<script>{_asset("page_timeline.js")}</script>
<script>{_asset("page_tree.js")}</script>
<script>{_asset("page.js")}</script>
</body></html>
"""


def _several(summaries: Sequence[Summary]) -> str:
    tabs = "".join(
        f'<a href="#trace-{number}">{escape(_label(summary, number))}</a>' for number, summary in enumerate(summaries)
    )
    return f"{sections.overview(summaries)}<nav>{tabs}</nav>"


def _label(summary: Summary, number: int) -> str:
    return f"{number + 1}: rank {summary.trace.rank}" if summary.trace.rank is not None else f"trace {number + 1}"


def _trace(number: int, summary: Summary, shown: Timeline) -> str:
    return f"""<section class="trace" id="trace-{number}">
<h2>{escape(summary.trace.path.name)}</h2>
<p class="facts">{sections.facts(summary)}</p>
{sections.verdict(summary)}
{sections.breakdown(summary)}
<div class="block timeline"><h3>Timeline of a step</h3>
{_strip(summary, shown)}
<noscript><p class="note">The timeline needs JavaScript; all figures stand above and below.</p></noscript>
<div class="tools" hidden><output></output><input type="search" placeholder="find by name" aria-label="find by name">
<button type="button" data-do="in" title="W or ↑">+</button>
<button type="button" data-do="out" title="S or ↓">&minus;</button>
<button type="button" data-do="all" title="0">whole step</button>
<button type="button" data-do="arrows" title="from launches to their work, while few are seen">arrows</button></div>
<div class="stage-canvas"><canvas tabindex="0" role="img" aria-label="Timeline of the chosen step"></canvas></div>
<div class="keys" hidden></div><p class="chosen" hidden></p>
<p class="note">{escape(_left_out(summary, shown))}</p></div>
{_TREE}
{sections.tables(summary)}
</section>
"""


def _left_out(summary: Summary, shown: Timeline) -> str:
    count, kept = len(summary.steps.names), len(shown.kept)
    which = ("the median", "the slowest", "the fastest")[:kept]
    steps = "All steps are here" if kept == count else f"{kept} of {count} steps are here, with {', '.join(which)}"
    events = f"; of their events the shortest {shown.left_out:,} are left out" if shown.left_out else ""
    ways = "Wheel or W S: zoom; drag or A D: move; double-click: zoom to an event; [ ]: other steps"
    late = any(step["late"] for step in shown.content["steps"].values())
    events += "; hatched: work of the device that an earlier step launched" if late else ""
    return f"{steps}{events}. {ways}; drag on the axis or with Shift: choose a range; R: the chosen event's; Esc: none."


def _strip(summary: Summary, shown: Timeline) -> str:
    """A column a step, as high as it is long, in the colours of its stages; a button where its events are here."""
    ms_W, us_WK = summary.steps.ms, summary.stages.per_step(summary.steps)
    colours = stage_colours(summary.stages.names)
    numbers = range(len(ms_W))
    if len(ms_W) > STRIP:
        near = max(0, min(shown.content["first"] - STRIP // 2, len(ms_W) - STRIP))
        numbers = sorted({*shown.kept, *range(near, near + STRIP)})
    columns = []
    for number in numbers:
        parts = "".join(
            f'<i style="flex-grow:{us:.3f};background:{colour}"></i>'
            for us, colour in zip(us_WK[number].tolist(), colours, strict=True)
            if us > 0
        )
        hint = escape(f"{summary.steps.names[number]}: {ms_W[number]:,.2f} ms", quote=True)
        here = f'data-step="{number}"' if number in shown.kept else "disabled"
        height = ms_W[number] / ms_W.max()
        columns.append(f'<button type="button" {here} title="{hint}" style="height:{height:.1%}">{parts}</button>')
    return f"<div class='strip' role='group' aria-label='steps'>{''.join(columns)}</div>"


def _json(content: Any) -> str:
    """JSON that no name in it can end early: in a script element only ``<`` matters."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (files("fastvicreg.profiles.trace") / name).read_text("utf-8")
