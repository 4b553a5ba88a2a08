"""``bench all`` and the correctness check: what fails is told, and costs no other part."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvicreg.cli import main
from fastvicreg.kernels.augment import parallel
from fastvicreg.kernels.lars import foreach
from fastvicreg.profiles.bench import correctness, suite
from fastvicreg.profiles.bench import lars as lars_bench
from fastvicreg.profiles.bench.suite import Job


def test_every_implementation_that_runs_here_passes() -> None:
    rows = correctness.run("cpu", small=True)
    assert correctness.failures(rows) == 0
    passed = {(row["kernel"], row["impl"]) for row in rows if row["verdict"] == "pass"}
    assert {
        ("loss", "gram"),
        ("lars", "foreach"),
        ("augment", "numba"),
        ("norm", "native"),
        ("norm, add", "native"),
    } <= passed
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


def test_a_kernel_that_raises_costs_its_own_row_and_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **settings: object) -> None:
        raise ImportError("out of shared memory\nstack")  # as a compiler's errors, of no class known here

    monkeypatch.setattr(foreach, "update", broken)
    rows = correctness.run("cpu", small=True)
    assert correctness.failures(rows) == 1
    (failed,) = (row for row in rows if row["verdict"].startswith("FAIL"))
    assert (failed["impl"], failed["verdict"]) == ("foreach", "FAIL: ImportError: out of shared memory")
    assert any(row["kernel"] == "augment" and row["verdict"] == "pass" for row in rows)


@pytest.mark.parametrize("view", [0, 1])
def test_a_view_that_is_not_written_fails_the_check(monkeypatch: pytest.MonkeyPatch, view: int) -> None:
    right = parallel.augment

    def wrong(*arguments: Any, **settings: Any) -> tuple[torch.Tensor, ...]:
        views = right(*arguments, **settings)
        views[view][0, 0, 0, 0] = torch.nan
        return views

    monkeypatch.setattr(parallel, "augment", wrong)
    rows = correctness.run("cpu", small=True)
    rows = [row for row in rows if (row["kernel"], row["impl"]) == ("augment", "numba")]
    assert correctness.failures(rows) == len(rows) == 3


def test_a_parameter_that_is_lost_shows_in_the_benchmark_of_lars() -> None:
    truth = [torch.ones(3), torch.ones(3)]
    assert lars_bench.worst_error([torch.ones(3), torch.full((3,), torch.nan)], truth) != 0


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


def test_the_sanitizer_looks_at_every_kernel_of_ours_and_at_no_other() -> None:
    sources = [
        path for folder in ("augment", "lars", "loss") for path in files(f"fastvicreg.kernels.{folder}").iterdir()
    ]
    cuda = [path.read_text() for path in sources if path.name.endswith(".cu")]
    triton = [path.read_text() for path in sources if path.name.startswith("triton")]
    ours = [name for text in cuda for name in re.findall(r'extern "C".*?\b(\w+)\s*\((?:const|\s)', text, re.DOTALL)]
    ours += [name for text in triton for name in re.findall(r"@triton\.jit.*?\ndef (\w+)", text)]
    assert {"augment", "lars_apply", "statistics", "matrix", "gradient"} <= set(ours)
    command = suite.sanitized("/bin/compute-sanitizer", "racecheck")
    only = next(part.removeprefix("regex=") for part in command if part.startswith("regex="))
    assert all(re.search(only, name) for name in ours), ours
    assert not re.search(only, "_ZN2at6native29vectorized_elementwise_kernelILi4E")
    assert not re.search(only, "sm90_xmma_gemm_bf16f32_bf16f32_f32_tn_n")


def test_memory_is_checked_tensor_by_tensor() -> None:
    memcheck, racecheck = (suite.sanitized("/bin/compute-sanitizer", tool) for tool in ("memcheck", "racecheck"))
    assert memcheck[:3] == ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "/bin/compute-sanitizer")
    assert racecheck[:3] == ("/bin/compute-sanitizer", "--tool", "racecheck")
    assert "--report-api-errors" in memcheck
    assert "--report-api-errors" not in racecheck  # memcheck's own option


def test_all_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "all"]) == 2
    assert "--out DIR" in capsys.readouterr().err
