"""``fastvicreg trace`` as a user types it: what it prints, writes and draws, and one line for every mistake."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from PIL import Image
from traces import TraceWriter, device_trace

from fastvicreg.cli import main

PROMISED = {"command", "commit", "versions", "hardware", "n", "rows"}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return device_trace().write(tmp_path / "trace.json.gz")


def test_a_summary_is_printed_written_and_drawn(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, png, svg = tmp_path / "out.json", tmp_path / "bars.png", tmp_path / "bars.svg"
    assert main(["trace", "summary", str(trace), "--json", str(out), "--plot", str(png)]) == 0
    text = capsys.readouterr().out
    for part in (
        "Data-bound",
        "3 steps",
        "enumerate(DataLoader)",
        "ampere_sgemm_128x64_tn",
        "aten::mm",
        "comm, exposed",
    ):
        assert part in text
    written = json.loads(out.read_text())
    assert written.keys() == PROMISED
    assert written["command"] == "trace summary"
    (row,) = written["rows"]
    assert row["steps"] == 3
    assert row["step_ms"] == pytest.approx({"p50": 1.0, "p95": 1.0})
    assert row["device"].keys() == {"compute", "comm", "copy", "idle"}
    assert row["idle_by"].keys() == {*("data", "sync", "alloc", "startup", "launch", "host_op", "python", "unknown")}
    assert row["verdict"].keys() == {"bound", "text"}
    with Image.open(png) as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20
    assert main(["trace", "summary", str(trace), "--plot", str(svg)]) == 0
    drawn = svg.read_text()
    assert "compute 30.0%" in drawn
    assert "DataLoader" in drawn


def test_a_host_trace_has_no_word_of_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = TraceWriter()
    writer.step(1, 0, 1000)
    writer.op("aten::mm", 0, 900)
    path = writer.write(tmp_path / "host.json")
    assert main(["trace", "summary", str(path), "--plot", str(tmp_path / "a.svg")]) == 0
    text = capsys.readouterr().out
    assert "host only" in text
    assert "GPU" not in text
    assert "idle" not in text
    assert "device ms" not in text
    assert "kernels:" not in text


def test_ranks_are_set_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in range(5):
        device_trace(rank=rank, data_us=300 + 100 * (rank == 3)).write(tmp_path / f"rank{rank}.json")
    out = tmp_path / "rows" / "out.json"
    assert main(["trace", "summary", str(tmp_path), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert all(f"rank{rank}.json" in text for rank in range(5))
    assert text.count("stages of a step") == 1  # the slowest rank's alone
    assert "rank 3): 3 steps: p50 1.10 ms" in text
    assert [row["rank"] for row in json.loads(out.read_text())["rows"]] == list(range(5))


def test_a_diff_is_printed_and_written(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = device_trace(gemm_us=450).write(tmp_path / "slower.json")
    out = tmp_path / "out.json"
    assert main(["trace", "diff", str(trace), str(slower), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "B is 15% slower" in text
    assert "most of it is compute" in text
    written = json.loads(out.read_text())
    assert written.keys() == PROMISED
    assert written["rows"][0] | {"kind": "step", "differs": True} == written["rows"][0]


@pytest.mark.parametrize(
    ("limit", "code"), [("5%", 1), ("14.9", 1), ("15.1%", 0), ("100 %", 0)], ids=["5", "14.9", "15.1", "100"]
)
def test_the_gate_fails_where_the_step_is_slower_than_allowed(
    limit: str, code: int, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = str(device_trace(gemm_us=450).write(tmp_path / "slower.json"))
    assert main(["trace", "diff", str(trace), slower, "--fail-above", limit]) == code
    assert main(["trace", "diff", slower, str(trace), "--fail-above", limit]) == 0
    assert main(["trace", "diff", str(trace), str(trace), "--fail-above", "0%"]) == 0
    assert ("more than" in capsys.readouterr().out) is bool(code)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("sumary {trace}", "did you mean 'summary'"),
        ("summary", "no trace given"),
        ("summary {folder}/absent.json", "absent.json"),
        ("summary {trace} --plot x.pdf", ".png or .svg"),
        ("summary {cut}", "cut off"),
        ("summary {trace} --jsn x", "did you mean --json"),
        ("summary {trace} --steps-by epoch", "Optimizer.step#SGD.step"),
        ("summary {trace} --comm (", "--comm ("),
        ("top {trace} --by thread", "kind of --by"),
        ("top {trace} --by python", "with_stack=True"),
        ("top {trace} --count 0", "--count 0"),
        ("top {folder}", "name one of them"),
        ("diff {trace}", "See fastvicreg trace diff --help"),
        ("diff {trace} {trace} --fail-above much", "5%"),
        ("diff {trace} {trace} --fail-above -1%", "5%"),
        ("diff {trace} {folder}", "name one of them"),
        ("summary {trace} --json {trace}/x.json", "cannot write"),
        ("summary {trace} --plot {trace}/x.png", "cannot write"),
    ],
)
def test_mistakes_are_one_line(
    arguments: str, named: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device_trace().write(tmp_path / "second.json")
    cut = tmp_path / "folder_of_its_own"
    cut.mkdir()
    (cut / "cut.json.gz").write_bytes(trace.read_bytes()[:40])
    words = arguments.format(trace=trace, folder=tmp_path, cut=cut / "cut.json.gz").split()
    assert main(["trace", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert named in lines[0]


@pytest.mark.parametrize("by", ["kernel", "operator", "python"])
def test_the_longest_are_listed(by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = device_trace()
    for number in range(3):
        at = 10_000.0 + 1000 * number
        writer.add("python_function", "train.py(1): step", at, 900)
        writer.add("python_function", "train.py(9): recurse", at + 10, 500)
        writer.add("python_function", "train.py(9): recurse", at + 20, 100)
    path, out = writer.write(tmp_path / "a.json"), tmp_path / "out.json"
    assert main(["trace", "top", str(path), "--by", by, "--json", str(out), "--count", "1"]) == 0
    written = json.loads(out.read_text())
    rows = {row["name"]: row for row in written["rows"]}
    assert written["by"] == by
    first = {"kernel": "ampere_sgemm_128x64_tn", "operator": "aten::mm", "python": "train.py(9): recurse"}[by]
    assert next(iter(rows)) == first
    assert first in capsys.readouterr().out
    if by == "python":
        assert rows[first] | {"name": ""} == {
            "name": "", "calls": 6, "own_ms": pytest.approx(1.5), "whole_ms": pytest.approx(1.5), "device_ms": 0,
        }  # fmt: skip
        assert rows["train.py(1): step"]["own_ms"] == pytest.approx(1.2)
    if by == "operator":
        assert (rows[first]["own_ms"], rows[first]["device_ms"]) == (pytest.approx(0.246), pytest.approx(0.9))


def test_a_bad_file_among_ranks_costs_that_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device_trace(rank=0).write(tmp_path / "rank0.json")
    device_trace(rank=2).write(tmp_path / "rank2.json")
    (tmp_path / "config.json").write_text('{"lr": 1}')
    assert main(["trace", "summary", str(tmp_path), "--json", str(tmp_path / "out" / "out.json")]) == 0
    shown = capsys.readouterr()
    assert "config.json" in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert [row["rank"] for row in json.loads((tmp_path / "out" / "out.json").read_text())["rows"]] == [0, 2]
    assert main(["trace", "html", str(tmp_path), "--out", str(tmp_path / "out" / "a.html")]) == 0
    (tmp_path / "rank0.json").write_text("no")
    (tmp_path / "rank2.json").write_text("no")
    assert main(["trace", "summary", str(tmp_path)]) == 2


@pytest.mark.parametrize("command", ["summary", "top", "html", "open"])
@pytest.mark.parametrize("kind", ["a folder", "an empty file", "a picture", "packed text"])
def test_what_is_no_trace_is_one_line_for_every_command(
    command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given\x1b[31m.json"
    if kind == "a folder":
        given.mkdir()
    elif kind == "a picture":
        Image.new("RGB", (40, 30)).save(given, "PNG")
    else:
        given.write_bytes(gzip.compress(b"hello") if kind == "packed text" else b"")
    out = ["--out", str(tmp_path / "page.html")] if command == "html" else []
    assert main(["trace", command, str(given), *out]) == 2
    assert main(["trace", "diff", str(given), str(given)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2, lines
    for line in lines:
        assert "given\\x1b[31m.json" in line
        assert {"a folder": "holds no trace", "an empty file": "is empty"}.get(kind, "is no trace") in line


def test_a_files_name_cannot_drive_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = device_trace().write(tmp_path / "a\x1b[31m.json")
    (tmp_path / "b\x1b[31m.json").write_text("no")
    page = tmp_path / "out" / "p\x1b[31m.html"
    for arguments in (["summary", str(path)], ["summary", str(tmp_path)], ["html", str(path), "--out", str(page)]):
        assert main(["trace", *arguments]) == 0
        shown = capsys.readouterr()
        assert "\x1b" not in shown.out + shown.err


def test_help_names_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["summary", "--help"], ["diff", "--help"], ["top", "--help"]):
        with pytest.raises(SystemExit) as left:
            main(["trace", *arguments])
        assert left.value.code == 0
    text = capsys.readouterr().out
    assert "--fail-above" in text
    assert "--plot" in text
    assert main(["trace"]) == 2
