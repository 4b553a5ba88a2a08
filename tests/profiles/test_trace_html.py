"""``fastvicreg trace html``: the summary's figures, no name breaks it, and a browser builds what it promises."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import HOSTILE, Page, hostile, needs_browser, seen_in_browser, summary_of
from traces import TraceWriter, device_trace

from fastvicreg.cli import main
from fastvicreg.profiles import trace as trace_package
from fastvicreg.profiles.trace import page_timeline
from fastvicreg.profiles.trace.gaps import LABELS
from fastvicreg.profiles.trace.kinds import Kind
from fastvicreg.profiles.trace.page import page, write_page
from fastvicreg.profiles.trace.page_timeline import EVENTS, shape_text, timeline


def test_the_page_holds_the_figures_of_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, out, figures = (tmp_path / name for name in ("a.json.gz", "a.html", "a.json"))
    device_trace().write(trace)
    assert main(["trace", "summary", str(trace), "--json", str(figures)]) == 0
    (row,) = json.loads(figures.read_text())["rows"]
    capsys.readouterr()
    assert main(["trace", "html", str(trace), "--out", str(out)]) == 0
    assert row["verdict"]["text"] in capsys.readouterr().out
    shown = Page(out.read_text("utf-8"))
    assert json.loads(shown.scripts["figures"]) == [row]
    assert [line[:3] for line in shown.tables["kernels"][1:]] == [
        [kernel["name"], f"{kernel['share']:.1%}", f"{kernel['calls']:,}"] for kernel in row["kernels"]
    ]
    assert [line[:3] for line in shown.tables["operators"][1:]] == [
        [op["name"], f"{op['host_share']:.1%}", str(op["calls"])] for op in row["operators"]
    ]
    device = {line[0]: line[2] for line in shown.tables["blamed"][1:]}
    assert device["compute"] == "30.0%"
    assert device["idle"] == "55.0%"
    assert {cause: device[f"idle: {LABELS[cause]}"] for cause in row["idle_by"]} == {
        cause: f"{share:.1%}" for cause, share in row["idle_by"].items()
    }
    stages = next(table for table in shown.tables.values() if table[0][0] == "stage")
    assert {line[0]: line[2] for line in stages[1:]} == {n: f"{share:.1%}" for n, share in row["stages"].items()}
    assert "Data-bound" in shown.text
    assert "p50 1.00 ms" in shown.text
    assert "fastvicreg trace diff a.json.gz" in shown.text


def test_nothing_is_fetched(tmp_path: Path) -> None:
    text = page([summary_of(device_trace(), tmp_path / "a.json")])
    for tag, attributes in Page(text).tags:
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"https?:|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\b", text)


def test_no_name_breaks_the_page(tmp_path: Path) -> None:
    out = write_page([summary_of(hostile(), tmp_path / "<i>&amp;\udcff.json")], tmp_path / "page" / "a.html")
    shown = Page(out.read_text("utf-8"))
    assert not {tag for tag, _ in shown.tags} & {"img"}
    assert sum(tag == "b" for tag, _ in shown.tags) == 1  # the page's own "Next:"
    assert not any("onclick" in attributes or "onerror" in attributes for _, attributes in shown.tags)
    (content,) = json.loads(shown.scripts["timelines"])
    assert f"aten::mm{HOSTILE}" in content["names"]
    assert any(HOSTILE in name for name, _ in content["stages"])
    assert f"aten::mm{HOSTILE}" in [line[0] for line in shown.tables["operators"]]
    assert "<i>&amp;?.json" in shown.text


def events_of(content: dict[str, Any], step: int, label: str) -> list[dict[str, Any]]:
    place = next(i for i, lane in enumerate(content["lanes"]) if label in lane["label"])
    lane = content["steps"][step]["lanes"][place]
    starts = np.cumsum(lane["s"]).tolist()
    return [
        {
            "name": content["names"][lane["n"][i]],
            "start": starts[i],
            "length": lane["d"][i],
            "shape": content["shapes"][lane["h"][i]] if lane["h"][i] >= 0 else "",
            "call": lane["c"][i] if lane["c"] else -1,
        }
        for i in range(len(starts))
    ]


def test_a_step_is_laid_out_as_it_was(tmp_path: Path) -> None:
    content = timeline(summary_of(device_trace(), tmp_path / "a.json"), EVENTS).content
    step = content["steps"][content["first"]]
    assert step["ns"] == 1_000_000
    (kernel,) = events_of(content, content["first"], "stream 7")[:1]
    assert kernel["name"] == "ampere_sgemm_128x64_tn"
    assert (kernel["start"], kernel["length"]) == (400_000, 300_000)
    assert kernel["shape"] == "512×1024 float, 1024×256 float"  # noqa: RUF001
    own = events_of(content, content["first"], "thread 101")
    assert [event["name"] for event in own if event["call"] == kernel["call"]] == ["cudaLaunchKernel"]
    assert own[0]["name"].startswith("ProfilerStep")  # what holds others comes before them
    starts, ends, ids = step["device"]
    spent = np.bincount(ids, np.subtract(ends, starts), len(content["parts"]))
    named = dict(zip([name for name, _ in content["parts"]], spent.tolist(), strict=True))
    assert {name: ns for name, ns in named.items() if ns} == {
        "compute": 300_000, "comm": 100_000, "copy": 50_000, "idle: data": 300_000, "idle: sync": 80_000,
        "idle: launch": 31_000, "idle: host_op": 124_000, "idle: python": 15_000,
    }  # fmt: skip
    starts, ends, ids = step["stages"]
    assert starts[0] == 0
    assert ends[-1] == 1_000_000
    assert starts[1:] == ends[:-1]
    assert content["stages"][ids[0]][0] == "enumerate(DataLoader)"


def test_the_median_step_comes_first_and_the_longest_events_stay(tmp_path: Path) -> None:
    writer, at = TraceWriter(), 0.0
    for number, length in enumerate((500.0, 900.0, 400.0, 700.0, 600.0)):
        writer.step(number, at, length)
        for i in range(20):
            writer.op(f"op{i}", at + 10 * i, i % 10 + 0.5)
        writer.add("python_function", "module.py(1): f", at, length - 1)
        at += length
    summary = summary_of(writer, tmp_path / "a.json")
    assert list(timeline(summary, EVENTS).content["steps"]) == [4, 1, 2, 0, 3]
    shown = timeline(summary, 11)
    assert shown.kept == (4,)
    assert shown.left_out == 22 - 11
    names = {event["name"] for event in events_of(shown.content, 4, "thread 101")}
    assert names == {"ProfilerStep#4", *(f"op{i}" for i in (9, 8, 7, 6, 5, 19, 18, 17, 16, 15))}
    assert "5 steps are here" not in page([summary])


def test_a_step_of_many_events_leaves_room_for_the_slowest_and_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_timeline, "LEAST_SPLIT", 40)
    writer, at = TraceWriter(), 0.0
    for number, length in enumerate((500.0, 900.0, 400.0, 700.0)):
        writer.step(number, at, length)
        for i in range(60):
            writer.op(f"op{i}", at + 5 * i, 4)
        at += length
    shown = timeline(summary_of(writer, tmp_path / "a.json"), 40)
    assert list(shown.content["steps"]) == [0, 1, 2]
    assert [len(shown.content["steps"][step]["lanes"][0]["s"]) for step in (0, 1, 2)] == [20, 10, 10]
    assert shown.left_out == 3 * 61 - 40


def test_a_long_trace_stays_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    writer = TraceWriter()
    for number in range(12):
        writer.step(number, number * 1e5, 1e5)
        for i in range(15_000):
            writer.op(f"aten::op{i % 300}", number * 1e5 + i * 6.001, 5.003, **{"External id": i})
    out = write_page([summary_of(writer, tmp_path / "a.json")], tmp_path / "a.html")
    assert out.stat().st_size < 3_000_000
    shown = Page(out.read_text("utf-8"))
    assert "3 of 12 steps are here" in shown.text
    assert sum(tag == "button" and "disabled" in attributes for tag, attributes in shown.tags) == 9


def test_ranks_stand_in_tabs_and_a_host_trace_has_no_device(tmp_path: Path) -> None:
    ranks = [summary_of(device_trace(rank=rank), tmp_path / f"rank{rank}.json") for rank in range(3)]
    host = TraceWriter()
    host.step(1, 0, 1000)
    host.op("aten::mm", 0, 900)
    text = page([*ranks, summary_of(host, tmp_path / "host.json")])
    shown = Page(text)
    sections = [attributes.get("id") for tag, attributes in shown.tags if tag == "section"]
    assert sections == [f"trace-{i}" for i in range(4)]
    assert len(json.loads(shown.scripts["timelines"])) == 4
    overview = next(table for table in shown.tables.values() if table[0][0] == "trace")
    assert [line[1] for line in overview[1:]] == ["0", "1", "2", "-"]
    alone = Page(page([summary_of(host, tmp_path / "host.json")]))
    assert "host only" in alone.text
    assert "idle" not in alone.text
    assert "blamed" not in alone.tables


@pytest.mark.parametrize(
    ("dims", "types", "text"),
    [
        (b"[[2,3],[],[4]]", b'["float","Scalar","c10::BFloat16"]', "2×3 float, 4 BFloat16"),  # noqa: RUF001
        (b"[[[2,3],[4]]]", b'["TensorList"]', "[2×3, 4] TensorList"),  # noqa: RUF001
        (b"[[7]]", b"", "7"),
        (b"{", b"", ""),
        (b"7", b"", ""),
    ],
)
def test_shapes_are_readable(dims: bytes, types: bytes, text: str) -> None:
    assert shape_text((dims, types, b"")) == text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("html", "no trace given"),
        ("html {trace} --out page.pdf", ".html"),
        ("html {trace} --out {trace}/page.html", "cannot write the page"),
        ("html {trace} --ot x", "did you mean --out"),
        ("html {folder}/none.json", "none.json"),
    ],
)
def test_mistakes_are_one_line(arguments: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = device_trace().write(tmp_path / "trace.json")
    assert main(["trace", *arguments.format(trace=trace, folder=tmp_path).split()]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert named in lines[0]


ACTIONS = """
const one = timelines[0], canvas = one.canvas, seen = {};
const lines = (name) => [...sections[0].querySelectorAll(`table.${name} tbody tr`)];
const rows = (name) => lines(name).map((row) => row.cells[0].textContent);
const head = (name, column) => sections[0].querySelectorAll(`table.${name} th button`)[column];
const key = (name) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
seen.drawn = Number(canvas.dataset.drawn);
seen.height = canvas.clientHeight;
seen.lanes = one.step.rows.map((row) => row.label);
head("operators", 0).click(); seen.byName = rows("operators");
head("operators", 0).click(); seen.byNameBack = rows("operators");
head("operators", 3).click(); seen.byTime = rows("operators");
canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -600, cancelable: true }));
seen.wheel = one.view[1] - one.view[0];
key("w"); seen.keyed = one.view[1] - one.view[0];
key("d"); seen.moved = one.view[0];
key("0"); seen.whole = [...one.view];
const row = one.step.rows.find((lane) => lane.kind === "stream"), box = canvas.getBoundingClientRect();
const at = { clientX: box.left + one.x(550000), clientY: box.top + row.y + 4, pointerId: 1, bubbles: true };
canvas.dispatchEvent(new PointerEvent("pointermove", at)); seen.tip = document.getElementById("tip").textContent;
canvas.setPointerCapture = () => {};
canvas.dispatchEvent(new PointerEvent("pointerdown", at)); canvas.dispatchEvent(new PointerEvent("pointerup", at));
seen.chosen = one.chosenBox.textContent;
one.query = "nccl"; one.draw(); seen.found = one.found.count;
const before = one.number; key("]"); seen.next = one.number - before;
seen.hidden = sections.map((section) => section.hidden);
location.hash = "#trace-1";
setTimeout(() => {
  seen.tabbed = sections.map((section) => section.hidden);
  seen.second = Number(timelines[1].canvas.dataset.drawn);
  seen.ready = document.body.dataset.ready;
  report();
}, 100);
"""


def test_the_page_names_and_colours_every_kind_of_event() -> None:
    """One more than ``Kind`` has: kernels that communicate. Without a browser nothing else would tell."""
    script = (Path(trace_package.__file__).parent / "page_events.js").read_text()
    for name in ("KINDS", "KEYS"):
        values = re.search(rf"const {name} = \[(.*?)\];", script, re.DOTALL)
        assert values
        assert len(re.findall(r'"[^"]+"', values.group(1))) == len(Kind) + 1, name


@needs_browser
def test_a_browser_builds_the_page(tmp_path: Path) -> None:
    summaries = [summary_of(writer, tmp_path / f"{i}.json") for i, writer in enumerate((hostile(), device_trace()))]
    seen = seen_in_browser(page(summaries), ACTIONS, tmp_path)
    assert seen["ready"] == "2"
    assert seen["drawn"] >= 15
    assert seen["height"] > 100
    assert seen["lanes"] == ["stages", "device", "stream 7", "stream 20", "thread 101"]
    assert seen["byName"] == sorted(seen["byName"], key=str.lower)
    assert seen["byNameBack"] == seen["byName"][::-1]
    assert seen["byTime"][0].startswith("aten::mm")
    assert seen["keyed"] < seen["wheel"] < 1_000_000
    assert seen["moved"] > 0
    assert seen["whole"] == [0, 1_000_000]
    for text in (seen["tip"], seen["chosen"]):
        assert HOSTILE in text
        assert "kernel: 300 " in text
        assert "512?1024 float" in text
    assert "launched by cudaLaunchKernel" in seen["chosen"]
    assert seen["found"] == 1
    assert seen["next"] == 1
    assert seen["hidden"] == [False, True]
    assert seen["tabbed"] == [True, False]
    assert seen["second"] >= 15
