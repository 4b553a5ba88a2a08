"""Work of a device that runs after its step's end: the page draws it in the step after, and says whose it is."""

from __future__ import annotations

from pathlib import Path

from pages import needs_browser, seen_in_browser, summary_of
from traces import TraceWriter

from fastvicreg.profiles.trace.page import page
from fastvicreg.profiles.trace.page_timeline import EVENTS, timeline


def late() -> TraceWriter:
    """Three steps; each launches a kernel that runs in the next one and another that crosses its own end."""
    writer = TraceWriter()
    for number in range(3):
        at = 10_000.0 + 1000 * number
        writer.step(number, at, 1000)
        writer.launch("own", (at + 100, 10), (at + 300, 100))
        writer.launch("crosses", (at + 600, 10), (at + 950, 100))
        writer.launch("next", (at + 700, 10), (at + 1200, 60))
    return writer


def test_a_step_names_the_step_that_launched_what_runs_late_in_it(tmp_path: Path) -> None:
    shown = timeline(summary_of(late(), tmp_path / "a.json"), EVENTS)
    content = shown.content
    late_of = {}
    for number, step in content["steps"].items():
        by_call = dict(step["late"])
        stream = step["lanes"][0]
        names = [content["names"][name] for name in stream["n"]]
        late_of[number] = {
            (name, by_call[call]) for name, call in zip(names, stream["c"], strict=True) if call in by_call
        }
    assert late_of[0] == set()
    assert late_of[1] == {("crosses", "ProfilerStep#0"), ("next", "ProfilerStep#0")}
    assert late_of[2] == {("crosses", "ProfilerStep#1"), ("next", "ProfilerStep#1")}


LATE_ACTIONS = """
const one = timelines[0], canvas = one.canvas, seen = { steps: [] };
canvas.setPointerCapture = () => {};
for (const number of [0, 1]) {
  one.show(number, "");
  const work = one.step.rows.find((row) => row.kind === "stream");
  const middle = Math.round((work.y + 7) * devicePixelRatio), context = canvas.getContext("2d");
  // Below the names' letters a line has one colour, or that of the hatching too.
  const { data } = number ? context.getImageData(0, middle + 5, canvas.width, 1) : {};
  const hatched = (event) => {
    const from = Math.ceil((one.x(Math.max(event.start, 0)) + 2) * devicePixelRatio);
    const until = Math.floor((one.x(Math.min(event.end, one.step.ns)) - 2) * devicePixelRatio);
    return new Set(data.filter((_, i) => i % 4 === 0).slice(from, until)).size > 1;
  };
  seen.steps.push(work.events.map((event) => [event.name, number ? hatched(event) : false, one.text(event)]));
  seen.count = (seen.count ?? []).concat(Number(canvas.dataset.late));
}
report();
"""


@needs_browser
def test_a_browser_hatches_late_work(tmp_path: Path) -> None:
    text = page([summary_of(late(), tmp_path / "a.json")])
    assert "hatched: work of the device that an earlier step launched" in text
    seen = seen_in_browser(text, LATE_ACTIONS, tmp_path)
    first, second = seen["steps"]
    assert [row[:2] for row in first] == [["own", False], ["crosses", False]]
    assert [row[:2] for row in second] == [["crosses", True], ["next", True], ["own", False], ["crosses", False]]
    assert "late" not in first[1][2]
    assert second[0][2].endswith("begun before the step\nlate: launched by ProfilerStep#0")
    assert second[1][2].endswith("\nlate: launched by ProfilerStep#0")
    assert seen["count"] == [0, 2]
