"""The trace benchmark runs each reader in a process of its own, on a trace that it writes itself. Nothing is timed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from traces import device_trace

from fastvicreg.errors import UserError
from fastvicreg.profiles.bench import trace as bench
from fastvicreg.profiles.trace.events import read_trace
from fastvicreg.profiles.trace.summary import summarize


def test_every_reader_has_a_row(tmp_path: Path) -> None:
    path = device_trace().write(tmp_path / "trace.json")
    rows = {row["reader"]: row for row in bench.run(path, repeats=1)}
    assert rows.keys() == bench.READERS.keys()
    ours = rows["fastvicreg"]
    assert ours["ratio"] == 1
    assert ours["events"] == len(device_trace().events)
    assert ours["seconds"] > 0
    assert 0 < ours["cpu_s"] < 60
    assert 20 < ours["peak_mb"] < 2000
    assert ours["children_mb"] == 0  # a small file is read by one process
    for reader, (module, _) in bench.READERS.items():
        if not find_spec(module):
            assert "not installed" in rows[reader]["error"]


def test_the_trace_it_writes_is_one(tmp_path: Path) -> None:
    path = bench.write_trace(tmp_path / "made.json", 9003)
    assert abs(bench.count_events(path) - 9003) < 20
    found = summarize(read_trace(path))
    assert len(found.steps.names) == 3
    assert found.device is not None
    assert found.device_shares is not None
    assert found.device_shares["compute"] == pytest.approx(25 / 40, abs=0.01)
    assert found.trace.shapes[0][0].startswith(b"[[256, 512")


def test_a_reader_that_fails_says_why(tmp_path: Path) -> None:
    run = bench.parse_once("raise ValueError('no such luck')", device_trace().write(tmp_path / "trace.json"))
    assert run.error == "ValueError: no such luck"


def test_the_processes_that_a_reader_starts_are_counted(tmp_path: Path) -> None:
    own, child = "x = b'1' * (80 << 20); import time; time.sleep(0.5)", "import time; time.sleep(0.5)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {own!r}]); {child}"
    run = bench.parse_once(program, tmp_path)
    assert run.error is None
    assert 80 < run.children_mb < 140
    assert run.peak_mb < 80


def test_an_absent_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trace at"):
        bench.run(tmp_path / "absent.json")
