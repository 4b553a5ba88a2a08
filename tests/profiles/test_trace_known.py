"""What is true of traces whose truth is known is what we say, and the committed table of verdicts holds all of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from known_traces import MADE, PUBLIC, Known
from trace_verdicts import FILE, PEERS, counted, judged, ours, peer
from traces import device_trace, written


@pytest.mark.parametrize("known", MADE, ids=[known.name for known in MADE])
def test_what_was_made_is_what_is_said(known: Known, tmp_path: Path) -> None:
    assert known.made
    _, row = ours(known, known.made().write(tmp_path / "a.json"))
    assert row["faults"] == []
    assert row["right"] is True


def test_what_is_not_true_is_a_fault(tmp_path: Path) -> None:
    path = device_trace(5).write(tmp_path / "a.json")
    wrong = Known("a", "", "sync", ("no such word",), {"compute": 0.32, "idle data": 0.305}, lambda s: False)
    _, row = ours(wrong, path)
    assert not row["right"]
    assert [fault.split(",")[0] for fault in row["faults"]] == [
        "bound by data", "does not say no such word", "compute is 0.3", "further facts do not hold",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("says", "bound", "verdict"),
    [
        ([], "data", "no verdict"),
        (["GPU 0 has low utilization. You could try to increase batch size to improve."], "host", "no verdict"),
        (["This run has high time cost on input data loading. 33.4% of the step"], "data", "right"),
        (["This run has high time cost on input data loading. 6% of the step"], "host", "wrong"),
        (["This run has high time cost on communication.", "high time cost on input data loading"], "comm", "right"),
    ],
)
def test_a_tool_is_judged_by_the_causes_that_it_names(says: list[str], bound: str, verdict: str) -> None:
    assert judged(says, bound) == verdict


@pytest.mark.parametrize(
    ("program", "verdict", "answer"),
    [
        ("says, shares = [], {'idle': 0.25, 'none': 0}", "no verdict", " (idle 25.0%)"),
        ("says, shares = ['high time cost on communication'], {}", "wrong", "high time cost on communication ()"),
        ("raise ValueError('no GPU')", "failed", "ValueError: no GPU"),
    ],
)
def test_a_tools_answer_is_taken_as_it_is(
    program: str, verdict: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEERS, "made", f"import json\n{program}")
    path = written(tmp_path / "a.json", b"{}")
    assert peer(sys.executable, "made", MADE[0], path) == {"verdict": verdict, "answer": answer.strip()}


def test_the_committed_table_is_right_and_whole() -> None:
    content = json.loads(FILE.read_text())
    rows: list[dict[str, Any]] = content["rows"]
    named = [row["trace"] for row in rows if "bound" in row]
    assert named == [*(f"made: {known.name}" for known in MADE), *(known.name for known in PUBLIC)]
    assert sum(row["right"] for row in rows) >= 0.95 * len(rows)
    assert content["counts"] == counted(rows)
    for row in rows[: len(named)]:
        assert {row[reader]["verdict"] for reader in PEERS} <= {"right", "wrong", "no verdict", "failed"}
