"""Reads a trace's page as a browser without scripts would, and makes traces whose names try to break it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from traces import TraceWriter, device_trace

from fastvicreg.profiles.trace.events import read_trace
from fastvicreg.profiles.trace.summary import Summary, summarize

HOSTILE = '</script><b onclick="x">&amp;</b><!--<script>'


class Page(HTMLParser):
    """Tags with their attributes, the tables' texts, and the content of scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._script, self._table, self._cell = "", "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append((tag, known))
        if tag == "table":
            self._table = known.get("class") or f"table {len(self.tables)}"
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
        elif tag in ("script", "style"):
            self._script = known.get("id") or tag
        self._cell = tag in ("td", "th") or (self._cell and tag not in ("table", "tr"))

    def handle_endtag(self, tag: str) -> None:
        self._script = "" if tag in ("script", "style") else self._script
        self._cell = self._cell and tag not in ("td", "th", "table")

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
            return
        self.text += data
        if self._cell:
            self.tables[self._table][-1][-1] += data


def summary_of(writer: TraceWriter, path: Path) -> Summary:
    """Of the trace, written to ``path``."""
    return summarize(read_trace(writer.write(path)))


def hostile(steps: int = 3) -> TraceWriter:
    """``device_trace`` with names of kernels, operators and stages that hold markup."""
    writer = device_trace(steps)
    for event in writer.events:
        if event["name"] in ("ampere_sgemm_128x64_tn", "aten::mm") or event["name"].startswith("enumerate"):
            event["name"] += HOSTILE
    for number in range(steps):
        at = 10_000.0 + 1000 * number
        writer.op('"><img src=x onerror=alert(1)>', at + 400, 30)
        writer.mark(f"stage {HOSTILE}", at + 640, 40)
    return writer
