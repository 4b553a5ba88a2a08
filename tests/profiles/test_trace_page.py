"""The page's timeline: Python folds, arrows lead from launches to their work, memory over time, a tree of calls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pages import HOSTILE, Page, needs_browser, seen_in_browser, summary_of
from traces import TraceWriter, device_trace

from fastvicreg.profiles.trace.memory import Use, memory_use
from fastvicreg.profiles.trace.page import page
from fastvicreg.profiles.trace.page_timeline import AWAY, CHANGES, EVENTS, timeline

GRAPH_KERNELS = 3


def stacked() -> TraceWriter:
    """Two steps of 1,000 us: frames around operators, a graph's launch of three kernels, one of which runs late.

    Python     | main 0-1000 > train 10-900 > f 100-400 > f 150-250 |
    operators            aten::mm 160-240 > call 200-220 | aten::relu 500-600 |
    device     | from the first call 300-350; of the graph's call at 700: 750, 780 and 60 after the step's end |
    memory     | 0: 1 MiB (4 reserved), 160: 3 MiB, 600: 2 MiB |
    """
    writer = TraceWriter()
    for number in range(2):
        at = 10_000.0 + 1000 * number
        writer.step(number, at, 1000)
        for name, start, length in (("main.py(1): main", 0, 1000), ("/home/a/train.py(7): train", 10, 890)):
            writer.add("python_function", name, at + start, length)
        writer.add("python_function", f"f{HOSTILE}", at + 100, 300)
        writer.add("python_function", f"f{HOSTILE}", at + 150, 100)
        writer.op("aten::mm", at + 160, 80)
        writer.launch("gemm", (at + 200, 20), (at + 300, 50))
        writer.op("aten::relu", at + 500, 100)
        writer.launch("first", (at + 700, 30), (at + 750, 20))
        correlation = writer.events[-1]["id"]
        for place, start in enumerate((780, 1060)):
            again = {"correlation": correlation, "device": 0, "stream": 7}
            writer.add("kernel", f"graphed {place}", at + start, 10, 7, 0, **again)
        for ts, size, total in ((0, 0, 1 << 20), (160, 2 << 20, 3 << 20), (600, -1 << 20, 2 << 20)):
            writer.memory(at + ts, size, total, 0, **{"Total Reserved": 4 << 20})
    return writer


def test_a_graphs_kernels_share_the_number_of_their_call_and_late_ones_are_told(tmp_path: Path) -> None:
    content = timeline(summary_of(stacked(), tmp_path / "a.json"), EVENTS).content
    step = content["steps"][0]
    labels = [lane["label"] for lane in content["lanes"]]
    host, stream = (step["lanes"][next(i for i, one in enumerate(labels) if word in one)] for word in ("101", "stream"))
    calls = [call for call, name in zip(host["c"], host["n"], strict=True) if "Launch" in content["names"][name]]
    works = {content["names"][name]: call for call, name in zip(stream["c"], stream["n"], strict=True)}
    assert works == {"gemm": calls[0], "first": calls[1], "graphed 0": calls[1]}
    assert [call for call in host["c"] if call >= 0] == calls
    assert [(call, content["names"][name], at, ns) for call, name, at, ns in step["away"]] == [
        (calls[1], "graphed 1", 1_060_000, 10_000)
    ]


def test_late_work_without_end_stays_small(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.step(0, 0, 1e4)
    writer.step(1, 1e4, 1e4)
    for number in range(AWAY + 50):
        writer.launch("late", (number, 0.5), (2e4 + 3 * number, 2))
    step = timeline(summary_of(writer, tmp_path / "a.json"), EVENTS).content["steps"][0]
    assert len(step["away"]) == AWAY


def test_memory_is_drawn_a_device_and_laid_beside_a_step(tmp_path: Path) -> None:
    summary = summary_of(stacked(), tmp_path / "a.json")
    content = timeline(summary, EVENTS).content
    mib = 1 << 20
    for step in content["steps"].values():
        at, allocated, reserved = step["memory"]["device 0"]
        assert at[-3:] == [0, 160_000, 600_000]
        assert allocated[-3:] == [mib, 3 * mib, 2 * mib]
        assert set(reserved) == {4 * mib}
    shown = Page(page([summary]))
    assert "peak 3.0 MiB allocated, 4.0 MiB reserved (dashed)" in shown.text
    drawn = [attributes for tag, attributes in shown.tags if tag == "path"]
    (allocated,) = [path["d"] for path in drawn if path["class"] == "allocated"]
    heights = {float(part.split("H")[0]) for part in (allocated or "").split("V")[1:]}
    assert heights == {27.5, 55.0, 82.5}  # of 110, the reserved 4 MiB being the top
    assert "Memory over" not in Page(page([summary_of(device_trace(), tmp_path / "b.json")])).text


def test_thinned_memory_keeps_its_highest_and_lowest() -> None:
    generator = np.random.default_rng(0)
    at_N = np.sort(generator.uniform(0, 1e6, 50_000))
    use = Use(at_N, generator.integers(0, 1 << 40, 50_000), None)
    thin = use.thinned(CHANGES)
    assert CHANGES / 2 < len(thin.at_N) <= CHANGES + 2
    assert (np.diff(thin.at_N) > 0).all()
    for bound in (np.max, np.min):
        assert bound(thin.allocated_N) == bound(use.allocated_N)
    assert np.isin(thin.at_N, at_N).all()
    assert use.between(2e5, 3e5).at_N[0] == 2e5
    assert use.between(2e5, 3e5).allocated_N[0] == use.allocated_N[np.flatnonzero(at_N <= 2e5)[-1]]


def test_totals_that_were_not_written_are_those_before(tmp_path: Path) -> None:
    writer = device_trace()
    for ts, size, total in ((10_000, 50, 500), (10_010, 7, -1), (10_020, 100, 607)):
        writer.memory(ts, size, total, 0)
    for ts, size in ((10_000, -40), (10_005, 90)):
        writer.memory(ts, size, 0)
    use = memory_use(summary_of(writer, tmp_path / "a.json").trace)
    assert use["device 0"].allocated_N.tolist() == [500, 500, 607]
    assert use["host"].allocated_N.tolist() == [40, 0, 90]
    assert use["host"].peak == 90
    assert use["host"].reserved_N is None


ACTIONS = """
const one = timelines[0], canvas = one.canvas, seen = {}, tree = sections[0].querySelector(".tree");
const box = () => canvas.getBoundingClientRect();
const point = (type, x, y, more = {}) => canvas.dispatchEvent(new PointerEvent(type, {
  clientX: box().left + x, clientY: box().top + y, pointerId: 1, bubbles: true, ...more }));
const press = (x, y) => { point("pointerdown", x, y); point("pointerup", x, y); };
canvas.setPointerCapture = () => {};
const rows = () => one.step.rows.map((row) => [row.label, row.shown, row.drawn.length]);
const table = () => [...tree.querySelectorAll("tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent));
const every = one.step.rows.flatMap((row) => row.events);
const named = (name, kind) => every.find((event) => event.name === name && event.kind === kind);
const set = (selector, value) => {
  const input = tree.querySelector(selector);
  if (typeof value === "boolean") input.checked = value; else input.value = value;
  input.dispatchEvent(new Event(input.type === "search" ? "input" : "change"));
};
const [lane, form] = tree.querySelectorAll("select");
one.onLook = () => trees[0].build();
one.draw();
seen.folded = rows();
const frames = one.step.rows.find((row) => row.folds);
seen.pieces = frames.pieces.map((piece) => [piece.start, piece.end, piece.text]);
press(20, frames.y + 5); seen.unfolded = rows();
press(20, frames.y + 5); seen.again = rows();
seen.operators = every.filter((event) => event.kind === 0).map((event) => event.depth);
press(one.x(120000), frames.y + 5); seen.frame = one.chosenBox.textContent;
seen.all = Number(canvas.dataset.arrows);
one.act.arrows(); seen.none = Number(canvas.dataset.arrows);
one.choose(named("aten::mm", 0)); seen.operator = [Number(canvas.dataset.arrows), one.chosenBox.textContent];
one.choose(one.step.launches.get(named("first", 3).call).call);
seen.graph = [Number(canvas.dataset.arrows), one.chosenBox.textContent];
one.choose(named("graphed 0", 3)); seen.kernel = [Number(canvas.dataset.arrows), one.chosenBox.textContent];
one.act.arrows();
const chart = one.step.rows.find((row) => row.chart);
point("pointermove", one.x(300000), chart.y + 10); seen.memory = document.getElementById("tip").textContent;
const ratio = devicePixelRatio, across = canvas.width, high = Math.round(chart.height * ratio);
const { data } = canvas.getContext("2d").getImageData(0, Math.round(chart.y * ratio), across, high);
seen.heights = [300000, 900000].map((at) => { // how many pixels look as the lowest does
  const x = Math.round(one.x(at) * ratio), red = (y) => data[4 * (y * across + x)];
  return Array.from({ length: high }, (_, y) => red(y)).filter((value) => Math.abs(value - red(high - 2)) < 3).length;
});
seen.tree = table();
set("select:nth-of-type(2)", "list"); seen.list = table();
tree.querySelectorAll("th button")[3].click(); seen.byOwn = table().map((line) => line[0]);
tree.querySelectorAll("th button")[3].click(); seen.byOwnBack = table().map((line) => line[0]);
tree.querySelectorAll("th button")[1].click();
set("select:nth-of-type(2)", "tree");
set("input[type=checkbox]", false); seen.plain = table();
set("input[type=checkbox]", true);
set("input[type=search]", "relu"); seen.found = table().map((line) => line[0]);
set("input[type=search]", "nothing like it"); seen.lost = table();
set("input[type=search]", "");
point("pointerdown", one.x(150000), 5); point("pointermove", one.x(210000), 5); point("pointerup", one.x(210000), 5);
seen.range = one.range.map(Math.round); seen.ranged = table(); seen.said = tree.querySelector("output").textContent;
one.choose(named("aten::relu", 0));
canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "r" })); seen.byKey = one.range;
canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" })); seen.noRange = one.range;
lane.value = [...lane.options].find((option) => option.textContent.includes("stream")).value;
lane.dispatchEvent(new Event("change")); seen.stream = table().map((line) => line.slice(0, 2));
seen.html = document.querySelectorAll("b[onclick]").length;
report();
"""


@needs_browser
def test_a_browser_folds_ties_and_sums_up(tmp_path: Path) -> None:
    seen = seen_in_browser(page([summary_of(stacked(), tmp_path / "a.json")]), ACTIONS, tmp_path)
    frames, host = "Python", "thread 101"
    folded = {label: (shown, count) for label, shown, count in seen["folded"]}
    assert folded[frames] == (1, 7)
    assert folded[host] == (3, 5)
    assert seen["pieces"][:3] == [
        [0, 10_000, "main  main.py:1"], [10_000, 100_000, "train  train.py:7"], [100_000, 150_000, f"f{HOSTILE}"],
    ]  # fmt: skip
    assert dict(zip(*list(zip(*seen["unfolded"], strict=True))[:2], strict=True))[frames] == 4
    assert seen["again"] == seen["folded"]
    assert set(seen["operators"]) == {1}  # below the step's mark alone: no frame pushes them down
    assert seen["frame"].startswith(f"f{HOSTILE}\nPython: 300")
    assert (seen["all"], seen["none"]) == (1 + 3, 1)  # the chosen frame holds one launch
    assert seen["operator"][0] == 1
    assert "launches gemm, 140" in seen["operator"][1]
    assert seen["graph"][0] == 2
    assert f"launches {GRAPH_KERNELS} events of the device, 40 " in seen["graph"][1]
    assert "in part after this step" in seen["graph"][1]
    assert (seen["kernel"][0], "launched by cudaLaunchKernel, 80" in seen["kernel"][1]) == (1, True)
    assert seen["memory"].startswith("memory, device 0\n3 MiB allocated, 4 MiB reserved")
    assert seen["heights"] == pytest.approx([30, 20], abs=2)  # 3 and 2 of 4 MiB, of 40 pixels
    assert seen["html"] == 0


@needs_browser
def test_a_browsers_tree_has_the_ranges_times(tmp_path: Path) -> None:
    seen = seen_in_browser(page([summary_of(stacked(), tmp_path / "a.json")]), ACTIONS, tmp_path)
    us = {"whole": 1, "own": 3, "calls": 4, "device": 5}

    def line(table: list[list[str]], name: str, nth: int = 0) -> list[str]:
        return [row for row in table if row[0].lstrip("?") == name][nth]

    assert line(seen["tree"], "train  train.py:7")[us["whole"]] == "890 ?s"
    outer = line(seen["tree"], f"f{HOSTILE}")
    assert (outer[us["whole"]], outer[us["own"]], outer[us["device"]]) == ("300 ?s", "200 ?s", "50 ?s")
    assert line(seen["list"], f"f{HOSTILE}")[1:5] == ["300 ?s", "30.0%", "220 ?s", "2"]
    assert line(seen["list"], "cudaLaunchKernel")[1:] == ["50 ?s", "5.0%", "50 ?s", "2", "90 ?s"]
    assert line(seen["list"], "aten::mm")[1:] == ["80 ?s", "8.0%", "60 ?s", "1", "50 ?s"]
    assert seen["byOwn"] == seen["byOwnBack"][::-1]
    assert seen["byOwn"] != [row[0] for row in seen["list"]]
    assert not any("train" in row[0] for row in seen["plain"])
    assert line(seen["plain"], "aten::relu")[us["whole"]] == "100 ?s"
    assert [name.lstrip("?") for name in seen["found"]][-1] == "aten::relu"
    assert not any("aten::mm" in name for name in seen["found"])
    assert seen["lost"] == [["no name here holds that"]]
    assert seen["range"] == pytest.approx([150_000, 210_000], abs=1500)
    assert "the chosen range: " in seen["said"]
    assert float(line(seen["ranged"], "aten::mm")[us["whole"]].split()[0]) == pytest.approx(50, abs=2)
    assert not any("relu" in row[0] for row in seen["ranged"])
    assert seen["byKey"] == [500_000, 600_000]
    assert seen["noRange"] is None
    assert sorted(seen["stream"])[:2] == [["first", "20 ?s"], ["gemm", "50 ?s"]]


def test_the_page_of_the_made_trace_holds_its_data_as_json(tmp_path: Path) -> None:
    shown = Page(page([summary_of(stacked(), tmp_path / "a.json")]))
    (content,) = json.loads(shown.scripts["timelines"])
    assert any(HOSTILE in name for name in content["names"])
    assert sum(tag == "table" and attributes.get("class") == "calls" for tag, attributes in shown.tags) == 1
