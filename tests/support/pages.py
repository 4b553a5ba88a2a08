"""Reads a trace's page as a browser without scripts would, and makes traces whose names try to break it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from traces import TraceWriter, device_trace

from fastvicreg.profiles.trace.events import read_trace
from fastvicreg.profiles.trace.summary import Summary, summarize

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="the page was not opened in a browser: no Chromium here")
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


REPORT = """
<script>
const report = () => {
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = btoa(JSON.stringify(seen).replace(/[^ -~]/g, "?"));
  document.body.append(result);
};
</script>
"""


def seen_in_browser(text: str, actions: str, folder: Path) -> dict[str, Any]:
    """What the script ``actions``, run at the page's end, puts into its object ``seen`` before it calls ``report``.

    The page must not say anything on the console. Characters beyond ASCII become "?".
    """
    assert CHROMIUM
    path = folder / "page.html"
    path.write_bytes(f"{text}{REPORT}<script>{actions}</script>".encode("utf-8", "replace"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=1400,1400"]
    command += [f"--user-data-dir={folder / 'profile'}", path.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    logged = [line for line in ran.stderr.splitlines() if ":CONSOLE" in line]
    assert not logged, logged
    found = re.search(r'<pre id="seen">([^<]+)</pre>', ran.stdout)
    assert found, ran.stderr[-2000:]
    return json.loads(base64.b64decode(found.group(1)))
