"""The step benchmark runs what each row names, beside the official step, and says what does not run here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastvicreg.cli import main
from fastvicreg.kernels.norm import BatchNorm
from fastvicreg.profiles.bench import step as bench_step
from fastvicreg.profiles.bench.step_variants import BARE, FOUR, OFFICIAL, WHOLE
from fastvicreg.train.steps import STEPS


def test_a_row_a_variant_beside_the_official_step() -> None:
    with torch.random.fork_rng():
        rows = bench_step.run(batch=8, size=16, repeats=2, only=("official", "eager", "cached"))
    assert [row["variant"] for row in rows] == ["official", "eager", "cached"]
    for row in rows:
        assert row["views_per_s"] == pytest.approx(16e3 / row["ms"])
        assert row["peak_bytes"] is None
    assert rows[0]["ratio"] == 1.0
    assert rows[2]["kept_mb"] < rows[1]["kept_mb"]
    for row in rows[:2]:
        assert all(row[f"{stage}_ms"] > 0 for stage in bench_step.STAGES)
    assert "forward_ms" not in rows[2]  # its stages do not pass one after another


def test_a_step_s_parts_alone_do_its_work_and_show_what_it_takes_besides() -> None:
    """The same weights after it, and neither the gate's norm of all gradients nor its flag."""
    cases = bench_step.cases("cpu")
    ends: list[dict[str, torch.Tensor]] = []
    counts: list[Counter[str]] = []
    for variant in (WHOLE, BARE):
        torch.manual_seed(0)
        subject = bench_step.build_case(tiny(Path("unused")), cases[variant], "cpu", 4)
        with Called() as called:
            subject.step(subject.batch, {"lr": 0.5})
        ends.append(subject.step.method.state_dict())  # type: ignore[attr-defined]
        counts.append(called.found)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert counts[0]["isfinite"] + counts[0]["_local_scalar_dense"] > 0
    assert counts[1]["isfinite"] + counts[1]["_local_scalar_dense"] == 0
    (whole, bare) = bench_step.run(batch=4, size=16, repeats=2, only=(WHOLE, BARE))
    assert whole["over_parts"] == pytest.approx(whole["ms"] / bare["ms"] - 1)
    assert "over its parts alone" in whole["note"]


def test_a_stem_on_four_channels_computes_the_same() -> None:
    cases, totals = bench_step.cases("cpu"), []
    for variant in (WHOLE, FOUR):
        torch.manual_seed(0)
        subject = bench_step.build_case(tiny(Path("unused")), cases[variant], "cpu", 4)
        channels = subject.batch.views[0].shape[1]
        assert channels == cases[variant].stem
        totals.append([float(subject.step(subject.batch, {"lr": 0.1}).total) for _ in range(3)])
    weight = subject.step.method.encoders["encoder"].get_parameter("conv1.weight")
    assert not weight[:, 3:].any()
    assert totals[1] == pytest.approx(totals[0], rel=1e-4)
    assert totals[0][0] != totals[0][2]


class Called(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_is_measured_with_the_convolutions_that_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(bench_step, "search_convolutions", asked.append)
    monkeypatch.setattr(bench_step, "_subjects", lambda *_: ({}, {"eager": "not here"}))
    assert [row["note"] for row in bench_step.run(only=("eager",))] == ["not here"]
    assert asked == ["cpu"]


def test_every_way_to_run_a_step_is_measured_on_cuda() -> None:
    assert {case.step for case in bench_step.cases("cuda").values()} == set(STEPS)
    assert next(iter(bench_step.cases("cuda"))) == next(iter(bench_step.cases("cpu"))) == OFFICIAL


@pytest.mark.parametrize("variant", ["official", "eager, joint views", "eager, bf16"])
def test_a_row_computes_what_it_names(variant: str) -> None:
    case = bench_step.cases("cpu")[variant]
    subject = bench_step.build_case(tiny(Path("unused")), case, "cpu", 4)
    for view in subject.batch.views:
        assert view.is_contiguous(memory_format=case.memory_format)
        assert view.dtype == (torch.bfloat16 if case.precision == "bf16" else torch.float32)
    encoder = subject.step.method.encoders["encoder"]
    assert encoder.get_parameter("conv1.weight").is_contiguous(memory_format=case.memory_format)
    norm = encoder.get_submodule("bn1")
    assert type(norm) is (BatchNorm if case.own_norms else nn.BatchNorm2d)
    if isinstance(norm, BatchNorm):
        assert (norm.joint_views is not None) == (case.views == "joint")
    subject()


def test_what_does_not_run_here_says_why_and_costs_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"eager": bench_step.Case(), "graphed": bench_step.Case("graphed")}
    monkeypatch.setattr(bench_step, "cases", lambda kind: cases)
    rows = bench_step.run(batch=4, size=16, repeats=2)
    assert rows[0]["ms"] > 0
    assert "--step graphed needs CUDA" in rows[1]["note"]
    assert "ms" not in rows[1]


def test_an_unknown_variant_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--only", "eagle"]) == 2
    error = capsys.readouterr().err
    assert "--only 'eagle' is no variant: choose from 'official'" in error
    assert error.count("\n") == 1
