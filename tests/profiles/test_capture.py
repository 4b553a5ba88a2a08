"""A capture holds the stages it should, where TensorBoard looks, beside what the steps take without it."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from images import encoded, photo
from runs import unevaluated

from fastvicreg import stages
from fastvicreg.cli import main
from fastvicreg.contracts import Cursor
from fastvicreg.pipelines import build_engine
from fastvicreg.pipelines.engines.annotate import in_worker
from fastvicreg.pipelines.feed import AugmentedFeed, DataWait
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.pipelines.sources import open_source
from fastvicreg.profiles.capture import Captured, Settings, capture
from fastvicreg.profiles.measure import Timing

TINY = ("--preset", "demo", "--batch-size", "8", "--image-size", "16", "--width", "16", "--expander", "16", "16")
SHORT = Settings(wait=1, warmup=1, active=2)
PLUGIN = re.compile(r"^(.*?)(?:\.\d+)?\.pt\.trace\.json(?:\.gz)?$")
"""The names that torch-tb-profiler's plugin takes for traces (consts.py, TRACE_FILE_SUFFIX and WORKER_PATTERN)."""


class Trace(NamedTuple):
    steps: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    events: list[dict[str, Any]]


def read(path: Path) -> Trace:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    annotations = [e for e in events if e.get("cat") == "user_annotation"]
    steps = [e for e in annotations if e["name"].startswith("ProfilerStep#")]
    return Trace(steps, [e for e in annotations if e["name"].startswith("fv.")], events)


def stages_by_step(trace: Trace) -> list[Counter[str]]:
    """How often each stage begins in each step, on the step's own thread."""
    return [
        Counter(
            e["name"]
            for e in trace.annotations
            if e["tid"] == step["tid"] and step["ts"] <= e["ts"] < step["ts"] + step["dur"]
        )
        for step in trace.steps
    ]


def assert_once_a_step(trace: Trace, expected: set[str]) -> None:
    counted = stages_by_step(trace)
    assert len(counted) == SHORT.active
    for counts in counted:
        # At an epoch's end the engine is asked once more.
        assert 1 <= counts.pop(stages.DATA_WAIT, 1) <= 2
        assert counts == Counter(expected - {stages.DATA_WAIT})
    assert {e["name"] for e in trace.annotations if e["tid"] == trace.steps[0]["tid"]} == expected


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Captured, Trace]:
    """A capture of a whole run and its trace."""
    root = tmp_path_factory.mktemp("capture")
    (root / "data").mkdir()
    for number in range(24):
        (root / "data" / f"{number:02d}.jpg").write_bytes(encoded(photo(number, 40, 30)))
    captured = capture(unevaluated(root / "data"), root / "run" / "tensorboard", settings=SHORT)
    return captured, read(captured.trace)


def test_every_stage_of_a_whole_run_is_there_once_a_step(taken: tuple[Captured, Trace]) -> None:
    _, trace = taken
    # Neither copies to a device nor other processes on one CPU process; a trace that had them would be wrong.
    expected = set[str](stages.ALL) - {stages.H2D, stages.COMM}
    assert_once_a_step(trace, expected)
    (main_thread,) = {step["tid"] for step in trace.steps}
    workers = Counter(e["name"] for e in trace.annotations if e["tid"] != main_thread)
    assert workers.keys() == set(stages.WORKERS)
    assert any("Input Dims" in e.get("args", {}) for e in trace.events)


def test_the_files_are_where_tensorboard_looks_and_nothing_else_is_left(taken: tuple[Captured, Trace]) -> None:
    captured, _ = taken
    folder = captured.trace.parent
    assert sorted(folder.iterdir()) == sorted([captured.trace, captured.sidecar])
    assert [path for path in folder.iterdir() if PLUGIN.match(path.name)] == [captured.trace]
    assert list(folder.parent.iterdir()) == [folder], "a capture writes no records of a run"


def test_the_sidecar_says_what_was_captured_and_what_it_costs(taken: tuple[Captured, Trace]) -> None:
    captured, trace = taken
    content = json.loads(captured.sidecar.read_text())
    assert {"command", "commit", "versions", "hardware", "n", "rows"} <= content.keys()
    assert content["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert content["config"]["run"]["batch_size"] == 8
    assert content["n"] == len(content["step_ms"]) == 10
    assert len(content["profiled_ms"]) == len(trace.steps) == SHORT.active
    (row,) = content["rows"]
    assert row["overhead"] == pytest.approx(row["profiled_ms"] / row["step_ms"] - 1)
    assert row["images_per_s"] == pytest.approx(8e3 / row["step_ms"])
    assert row["trace_bytes"] == captured.trace.stat().st_size
    for measured, step in zip(content["profiled_ms"], trace.steps, strict=True):
        assert measured <= step["dur"] / 1e3  # microseconds; the step's own mark lies outside


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("loader", {stages.DATA_WAIT}),
        ("augment", {stages.DATA_WAIT, stages.AUGMENT}),
        ("loss", {stages.LOSS, stages.BACKWARD}),
        ("lars", {stages.OPTIMIZER}),
        ("step", {stages.FORWARD, stages.LOSS, stages.BACKWARD, stages.OPTIMIZER}),
    ],
)
def test_a_part_alone_has_its_own_stages(part: str, expected: set[str], make_folder, tmp_path: Path) -> None:
    captured = capture(unevaluated(make_folder(val=0)), tmp_path / "traces", part=part, settings=SHORT)
    trace = read(captured.trace)
    assert_once_a_step(trace, expected)
    assert captured.trace.name.startswith(part)
    assert (stages.DECODE in {e["name"] for e in trace.annotations}) == (part == "loader")


def test_a_run_longer_than_an_epoch_goes_on_with_the_next(make_folder, tmp_path: Path) -> None:
    settings = Settings(wait=0, warmup=1, active=4)  # 15 steps, of 3 an epoch
    captured = capture(unevaluated(make_folder(val=0)), tmp_path, part="loader", settings=settings)
    assert len(read(captured.trace).steps) == 4


@pytest.mark.parametrize("asked", [False, True])
def test_stacks_and_memory_are_recorded_where_asked_for(asked: bool, make_folder, tmp_path: Path) -> None:
    settings = replace(SHORT, stacks=asked, memory=asked)
    trace = read(capture(unevaluated(make_folder(val=0)), tmp_path, part="loss", settings=settings).trace)
    assert any(e.get("cat") == "python_function" for e in trace.events) == asked
    assert any(e.get("name") == "[memory]" for e in trace.events) == asked
    assert_once_a_step(trace, {stages.LOSS, stages.BACKWARD})


def test_the_command_says_where_the_trace_is_and_what_is_next(
    make_folder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "run", tmp_path / "figures.json"
    arguments = ["--part", "lars", "--active=1", "--out", str(out), "--json", str(figures)]
    assert main(["profile", *arguments, "--data", str(make_folder()), *TINY]) == 0
    (trace,) = (out / "tensorboard").glob("*.pt.trace.json.gz")
    shown, errors = capfd.readouterr()
    assert "USDT:" not in errors
    for said in (f"trace: {trace} (", "overhead ", f"fastvicreg trace summary {trace}"):
        assert said in shown
    assert json.loads(figures.read_text())["trace"] == trace.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--part", "lodaer"], "did you mean 'loader'"),
        (["--part", "loader", "--pipeline", "dalli"], "unknown pipeline 'dalli'"),
        (["--part"], "--part"),
        (["--active", "0"], "--active 0"),
        (["--warmup", "0"], "--warmup 0"),
        (["--activ", "3"], "fastvicreg profile --help"),
        (["--resume", "--out", "x"], "--resume belongs to fastvicreg train"),
        (["--batch-size", "1"], "--batch-size 1"),
        (["--kernel", "loss=none"], "'none'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(
    make_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--part", "lars", "--data", str(make_folder(val=0)), "--out", str(tmp_path / "file")]
    assert main(["profile", *TINY, *arguments]) == 2
    assert "is a file, not a run: give a folder" in capsys.readouterr().err


def test_workers_are_annotated_only_while_a_profiler_runs() -> None:
    assert in_worker(stages.DECODE) is in_worker(stages.RESAMPLE)
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu]) as profiler, in_worker(stages.DECODE):
        pass
    assert stages.DECODE in {event.name for event in profiler.events() or ()}


class Event:
    """Stands in for a CUDA event."""

    def __init__(self, ms: float) -> None:
        self.ms = ms

    def elapsed_time(self, later: Event) -> float:
        return later.ms - self.ms


@pytest.mark.parametrize(
    ("worked", "arrived", "lost"),
    [
        (100.0, 80.0, 0.0),  # the crops were there before the device had done the last step
        (100.0, 150.0, 0.05),  # the device stood idle for a part of the host's wait
        (100.0, 900.0, 0.2),  # for all of it, and before: not the data's doing
    ],
)
def test_on_a_device_only_its_idle_time_is_lost_to_data(worked: float, arrived: float, lost: float) -> None:
    wait = DataWait(0.2, (Event(worked), Event(arrived)))  # type: ignore[arg-type]
    assert wait.seconds() == pytest.approx(lost)
    assert DataWait(0.2).seconds() == 0.2


@pytest.mark.gpu
def test_a_busy_device_loses_nothing_to_a_host_that_waits(make_folder) -> None:
    source = open_source(make_folder(train=64, val=0, name="flat"))
    plan = train_plan(len(source), seed=0, recipe=named_recipe("small"), image_size=16)
    engine = build_engine("native", source, plan, batch_size=4, device="cuda")
    feed = AugmentedFeed(engine, plan, device="cuda").epoch(Cursor(0, 0))
    busy, idle = [], []
    for step, fed in enumerate(feed):
        (busy if step > 2 else idle).append(fed.data_wait)
        torch.cuda._sleep(200_000_000)
    torch.cuda.synchronize()
    engine.close()
    assert busy
    assert all(wait.seconds() == 0 for wait in busy)


def test_a_profiler_makes_no_step_shorter(tmp_path: Path) -> None:
    def said(plain: float, profiled: float) -> str:
        times = [Timing(ms, 0.1, 5) for ms in (plain, profiled)]
        return Captured(tmp_path / "trace", tmp_path / "sidecar", *times).overhead_said

    assert said(10.0, 9.0) == "below the noise"
    assert said(10.0, 10.0) == "below the noise"
    assert said(10.0, 11.0) == "+10%"
