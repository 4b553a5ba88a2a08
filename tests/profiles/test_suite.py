"""``bench all`` and the correctness check: what fails is told, and costs no other part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastvicreg.cli import main
from fastvicreg.kernels.lars import foreach
from fastvicreg.profiles.bench import correctness, suite
from fastvicreg.profiles.bench.suite import Job


def test_every_implementation_that_runs_here_passes() -> None:
    rows = correctness.run("cpu", small=True)
    assert correctness.failures(rows) == 0
    passed = {(row["kernel"], row["impl"]) for row in rows if row["verdict"] == "pass"}
    assert {("loss", "gram"), ("lars", "foreach"), ("augment", "numba")} <= passed
    assert all("cannot run here" in row["verdict"] for row in rows if row["verdict"] != "pass")


def test_a_wrong_kernel_fails_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right: Callable[..., None] = foreach.update

    def wrong(params: list[torch.Tensor], *arguments: object, **settings: object) -> None:
        right(params, *arguments, **settings)
        params[0].mul_(1.001)

    monkeypatch.setattr(foreach, "update", wrong)
    assert main(["bench", "correctness", "--small", "--json", str(tmp_path / "rows.json")]) == 1
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["impl"] for row in rows if row["verdict"] == "FAIL"] == ["foreach"]


def test_what_is_not_written_is_not_right() -> None:
    with correctness.poisoned():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_part_that_fails_or_hangs_costs_its_own_figures_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def few(device: str, out: Path, repeats: int) -> list[Job]:
        return [
            Job("missing", ("bench", "nothing"), 60, "missing.json"),
            Job("slow", ("bench", "loader", "--repeats", "1000"), 4, "slow.json"),
            Job("ceilings", ("bench", "ceilings", "--repeats", "1"), 60, "ceilings.json"),
        ]

    monkeypatch.setattr(suite, "jobs", few)
    assert main(["bench", "all", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "cannot run here" in printed
    assert "stopped after 4 s" in printed
    written = json.loads((tmp_path / "all.json").read_text())
    assert [row["outcome"] for row in written["rows"]] == ["cannot run here", "stopped after 4 s", "ok"]
    assert {row["ceiling"] for row in written["figures"]["ceilings"]} == {"copy", "matmul float32"}
    assert "unknown part" in (tmp_path / "missing.log").read_text()


def test_the_budgets_of_a_gpu_end_within_nine_minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite.shutil, "which", lambda name: f"/bin/{name}")
    jobs = suite.jobs("cuda", tmp_path, 5)
    assert sum(job.budget for job in jobs) <= 9 * 60
    assert [job.name for job in jobs if job.wrapper] == ["sanitizer-memcheck", "sanitizer-racecheck"]


def test_all_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "all"]) == 2
    assert "--out DIR" in capsys.readouterr().err
