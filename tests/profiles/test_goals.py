"""The goals of one GPU: measured by one command, met or missed by what was measured, and held to the right device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvicreg.cli import main
from fastvicreg.profiles.bench import goals, goals_verdict, step
from fastvicreg.profiles.bench.goals_verdict import BATCH, FED, RATE, SPEED

STEPS: list[dict[str, Any]] = [
    {"variant": "official", "ms": 100.0, "ratio": 1.0, "views_per_s": 2900.0, "spread": 0.0, "batch": 256},
    {"variant": "eager, joint views", "ms": 50.0, "ratio": 2.0, "views_per_s": 5800.0, "spread": 0.01, "batch": 256},
    {"variant": "compiled, joint views", "ms": 40.0, "ratio": 2.6, "views_per_s": 7400.0, "spread": 0.02, "batch": 256},
    {"variant": "official, compiled", "ms": 10.0, "ratio": 10.0, "views_per_s": 29000.0, "spread": 0.0, "batch": 256},
    {"variant": step.BARE, "ms": 9.0, "ratio": 11.0, "views_per_s": 30000.0, "spread": 0.0, "batch": 256},
    {"variant": "graphed, joint views", "note": "cannot be captured"},
]


@pytest.mark.parametrize(
    ("gpu", "verdicts"),
    [
        ("NVIDIA H100 80GB HBM3", ["met", "met"]),
        ("NVIDIA H200", ["met", "MISSED"]),
        ("NVIDIA A100-SXM4-80GB", ["no goal of NVIDIA A100-SXM4-80GB"] * 2),
        ("", ["no goal of a CPU"] * 2),
    ],
)
def test_the_fastest_of_our_steps_meets_its_gpu_s_goals_or_misses_them(gpu: str, verdicts: list[str]) -> None:
    rows = goals_verdict.of_step(STEPS, gpu)
    assert [row["goal"] for row in rows] == [SPEED, RATE]
    assert [row["value"] for row in rows] == [2.6, 7400.0]
    assert [row["verdict"] for row in rows] == verdicts
    assert all(row["detail"] == "compiled, joint views, batch 256" for row in rows)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    text = goals_verdict.table({"step": [STEPS[0], STEPS[5]]}, "NVIDIA H200")
    assert text.count("not measured") == len(goals_verdict.NAMES)
    assert "met (" not in text


def test_the_table_of_a_whole_run_has_each_goal_once() -> None:
    own = [goals_verdict.judged(FED, "NVIDIA H200", 0.98), goals_verdict.judged(BATCH, "NVIDIA H200", 0)]
    figures = {"step": STEPS[:2], "step-compiled": STEPS[2:3], "goals": own}
    lines = goals_verdict.table(figures, "NVIDIA H200").splitlines()[3:]
    assert [line.split("|")[1].strip() for line in lines] == [SPEED, RATE, FED, BATCH]
    assert [line.split("|")[4].split("(")[0].strip() for line in lines] == ["met", "MISSED", "met", "MISSED"]


@pytest.mark.slow
def test_the_command_measures_every_goal_and_holds_a_cpu_to_none(tmp_path: Path) -> None:
    written = tmp_path / "goals.json"
    sizes = ("--batch", "8", "--large", "16", "--repeats", "2", "--only", "fed", "batch")
    assert main(["bench", "goals", *sizes, "--json", str(written)]) == 0
    fed, batch = json.loads(written.read_text())["rows"]
    assert (fed["goal"], batch["goal"], batch["value"]) == (FED, BATCH, 16)
    assert 0 < fed["value"] < 2
    assert "give --data" in fed["verdict"]
    assert batch["verdict"] == "no goal of a CPU"


def test_a_batch_that_the_memory_does_not_hold_is_a_goal_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(step, "build_case", full)
    monkeypatch.setattr(goals_verdict, "GOALS", {"": {BATCH: 16}})
    (row,) = goals.rows(large=16, only=("batch",))
    assert (row["value"], row["verdict"]) == (0, "MISSED")
    assert row["detail"] == "16 images: CUDA out of memory. Tried to allocate 2 GiB"


def test_the_step_of_the_goals_is_bench_step_s(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run(*given: Any, **more: Any) -> list[dict[str, Any]]:
        asked.update(given=given, **more)
        return STEPS

    monkeypatch.setattr(step, "run", run)
    assert [row["goal"] for row in goals.rows(only=("rate",))] == [RATE]
    assert asked["given"][0] == "demo"
    for kind, names in goals.OURS.items():
        assert set(names) <= set(step.cases(kind))


def test_an_unknown_goal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "goals", "--only", "speeed"]) == 2
    assert "--only 'speeed' is no goal: choose from speed, rate, fed, batch." in capsys.readouterr().err
