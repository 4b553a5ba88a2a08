"""``bench all`` and the correctness check: what fails is told, and costs no other part."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvicreg.cli import main
from fastvicreg.commands import bench
from fastvicreg.kernels.augment import parallel
from fastvicreg.kernels.lars import foreach
from fastvicreg.profiles.bench import correctness, step, suite, train
from fastvicreg.profiles.bench import lars as lars_bench
from fastvicreg.profiles.bench.registry import Benchmark
from fastvicreg.profiles.bench.suite import Job

pytestmark = pytest.mark.slow


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


def test_a_gpu_is_asked_first_for_what_training_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite.shutil, "which", lambda name: f"/bin/{name}")
    jobs = suite.jobs("cuda", tmp_path, 5)
    names = [job.name for job in jobs]
    assert names[:3] == ["correctness-training", "step", "train"]
    assert names[-1] == "step-official-compiled"  # compiles for a minute and more, for one figure
    assert names.index("loss") < names.index("correctness") < names.index("step-compiled")
    assert [job.name for job in jobs if job.wrapper] == ["sanitizer-memcheck", "sanitizer-racecheck"]
    # What the first 7 minutes are for can all take as long as it may.
    assert sum(job.limit for job in jobs[: names.index("correctness")]) <= 7 * 60


def test_every_variant_of_the_step_is_measured_in_one_part_beside_the_official_one() -> None:
    known = set(step.cases("cuda"))
    parts = suite.STEPS.values()
    assert set().union(*parts) == known
    assert all(part[0] == suite.OFFICIAL for part in parts)
    assert not any("compiled" in variant for variant in suite.STEPS["step"])


def test_a_budget_ends_what_runs_and_leaves_out_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def few(device: str, out: Path, repeats: int) -> list[Job]:
        return [
            Job("loader", ("bench", "loader", "--repeats", "1000"), 600, "loader.json"),
            Job("ceilings", ("bench", "ceilings", "--repeats", "1"), 60, "ceilings.json"),
        ]

    monkeypatch.setattr(suite, "jobs", few)
    (tmp_path / "ceilings.json").write_text("an earlier run's")
    assert main(["bench", "all", "--out", str(tmp_path), "--budget", "16"]) == 1
    assert not (tmp_path / "ceilings.json").exists()
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert rows[0]["outcome"] in ("stopped after 15 s", "stopped after 16 s")
    assert rows[1]["outcome"] == "left out: the budget is spent"
    assert "left out" in capsys.readouterr().out
    assert main(["bench", "all", "--out", str(tmp_path), "--budget", "-1"]) == 2
    assert "--budget -1: give seconds, or 0" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_the_suite_ends_its_part(number: signal.Signals, tmp_path: Path) -> None:
    """Each has a session of its own, and would go on with the device."""
    program = (
        "import signal, sys\nfrom fastvicreg.cli import main\nfrom fastvicreg.profiles.bench import suite\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell starts in the background
        "suite.jobs = lambda *_: [suite.Job('loader', ('bench', 'loader', '--repeats', '1000'), 600, 'loader.json')]\n"
        "go = suite._let_go\nsuite._let_go = lambda pipe: (go(pipe), print('let go', flush=True))\n"
        "sys.exit(main(['bench', 'all', '--device', 'cpu', '--out', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as started:
        assert started.stdout is not None
        assert [started.stdout.readline() for _ in range(2)] == ["loader ...\n", "let go\n"]
        part = _part_of(started.pid)
        try:
            started.send_signal(number)
            assert started.wait(timeout=60) == 130
            assert _within_a_minute(lambda: not Path(f"/proc/{part}").exists())  # which takes far longer by itself
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(part, signal.SIGKILL)


def _part_of(parent: int) -> int:
    """The process that ``parent`` has started, once it is there."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    assert _within_a_minute(lambda: bool(children.read_text()))
    return int(children.read_text().split()[0])


def _within_a_minute(seen: Callable[[], bool]) -> bool:
    until = time.monotonic() + 60
    while not seen():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_rows_are_on_disk_as_they_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A part that is ended early leaves those that it had."""
    out = tmp_path / "rows.json"
    seen: list[int] = []

    def rows(**options: object) -> Iterator[dict[str, object]]:
        for number in range(3):
            yield {"ceiling": number}
            if out.exists():
                seen.append(len(json.loads(out.read_text())["rows"]))

    monkeypatch.setattr(bench, "OFTEN", -1.0)
    monkeypatch.setattr(bench, "benchmark", lambda part: Benchmark(rows, ("ceiling",), key=("ceiling",)))
    assert main(["bench", "ceilings", "--json", str(out)]) == 0
    assert seen == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_a_waiting_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastvicreg.profiles.bench.ready", "bench", "ceilings", "--repeats", "1"]
    out = tmp_path / "ceilings.json"
    ended = subprocess.run([*command, "--json", str(out)], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert (ended.returncode, out.exists()) == (2, False)
    ran = subprocess.run([*command, "--json", str(out)], input=b"\n", capture_output=True, timeout=120)
    assert (ran.returncode, out.exists()) == (0, True), ran.stderr


def test_the_check_of_training_takes_what_auto_takes() -> None:
    rows = correctness.run("cpu", training=True)
    assert {row["impl"] for row in rows} == {"gram", "foreach", "numba", "native"}
    assert {row["dtype"] for row in rows} == {"float32"}
    assert all(row["verdict"] == "pass" for row in rows)


def test_the_two_choices_of_sizes_are_not_both_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "correctness", "--small", "--training"]) == 2
    assert "two choices of sizes" in capsys.readouterr().err


def test_a_short_run_is_trained_continued_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "ORDER", ("synthetic",))
    (row,) = train.run("cpu", epochs=1)
    assert (row["verdict"], row["goes_on"], row["resumed"], row["steps"]) == ("pass", 0.0, 0.0, 32)
    assert row["images_per_s"] > 0
    assert 0 < row["knn"] < 100


def test_a_run_that_ends_elsewhere_or_breaks_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def verdict(device: str, loss: float = 3.0, goes_on: float = 0.0, resumed: float = 0.0) -> str:
        return train.verdict({"loss": loss, "goes_on": goes_on, "resumed": resumed}, device)

    assert verdict("cpu") == verdict("cuda", goes_on=1e-3, resumed=0.1) == "pass"
    assert verdict("cpu", resumed=1e-7) == "FAIL: the resumed run ends elsewhere, by 1.0e-07"
    assert "goes on elsewhere: its next loss is off by 1.0e-07" in verdict("cpu", goes_on=1e-7)
    assert "goes on elsewhere: its next loss is off by 8.0e-02" in verdict("cuda", goes_on=0.08)  # nothing restored
    assert "goes on elsewhere" in verdict("cuda", goes_on=float("nan"))
    assert verdict("cuda", loss=float("nan")) == "FAIL: the loss is nan"
    apart = train._apart({"a": torch.ones(2), "n": torch.tensor(3)}, {"a": torch.ones(2), "n": torch.tensor(4)})
    assert apart == pytest.approx(1 / 3)
    spoilt = train._apart(
        {"a": torch.ones(2), "b": torch.ones(1)}, {"a": torch.full((2,), torch.nan), "b": torch.ones(1)}
    )
    assert verdict("cuda", resumed=spoilt) == "FAIL: the resumed run ends elsewhere, by inf"

    def broken(*arguments: object, **settings: object) -> None:
        raise RuntimeError("CUDA error: an illegal access\nmore")

    monkeypatch.setattr(train, "ORDER", ("synthetic",))
    monkeypatch.setattr(train, "assemble", broken)
    (row,) = rows = train.run("cpu", epochs=1)
    assert train.failures(rows) == 1
    assert row["verdict"] == "FAIL: RuntimeError: CUDA error: an illegal access"


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
