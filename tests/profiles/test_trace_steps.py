"""Typical steps carry the verdict; their work counts wherever it ran; any annotation can mark them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from traces import STEP, TraceWriter, loop, summary

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace.diff import compare
from fastvicreg.profiles.trace.text import head, notes


def test_an_empty_step_is_left_out_and_said(tmp_path: Path) -> None:
    writer, _ = loop(2)
    writer.step(2, 2 * STEP, 50)
    found = summary(writer, tmp_path)
    assert found.step_ms["p50"] == pytest.approx(1.0)
    assert [step.why for step in found.steps.apart] == ["empty"]
    assert any("ProfilerStep#2 0.05 ms (empty)" in note for note in notes(found))


def test_warm_up_and_outliers_do_not_carry_the_verdict(tmp_path: Path) -> None:
    writer, starts = loop(8, first=5e6)
    writer.step(99, 0, 4.9e6)
    writer.launch("gemm", (10, 5), (20, 100))
    for at in starts[:-1]:
        writer.launch("gemm", (at + 20, 5), (at + 212, 780))
    writer.events = [event for event in writer.events if event["name"] != "ProfilerStep#7"]
    writer.step(7, starts[-1], 9000)
    found = summary(writer, tmp_path)
    assert [(step.name, step.why) for step in found.steps.apart] == [
        ("ProfilerStep#99", "warm-up"), ("ProfilerStep#7", "outlier"),
    ]  # fmt: skip
    assert found.verdict.bound == "compute"
    assert found.step_ms == pytest.approx({"p50": 1.0, "p95": 1.0})


def test_steps_that_alternate_are_all_typical(tmp_path: Path) -> None:
    writer, at = TraceWriter(), 0.0
    for number in range(10):
        length = 3000.0 if number % 2 else 1000.0
        writer.step(number, at, length)
        writer.op("aten::mm", at, length)
        at += length
    assert summary(writer, tmp_path).steps.apart == ()


def test_any_annotation_can_mark_the_steps(tmp_path: Path) -> None:
    writer = TraceWriter()
    for number in range(5):
        at = number * STEP
        writer.mark("train_step", at, 900)
        writer.mark("train_step", at + 100, 50)  # inside another one: no step of its own
        writer.launch("gemm", (at + 5, 5), (at + 12, 800))
    found = summary(writer, tmp_path, steps_by="train_step")
    assert (found.steps.source, len(found.steps.names)) == ("annotation", 5)
    assert found.step_ms["p50"] == pytest.approx(1.0)
    assert found.verdict.bound == "host"
    assert any('--steps-by "train_step"' in note for note in notes(summary(writer, tmp_path)))
    with pytest.raises(UserError, match=r"--steps-by nothing.*train_step"):
        summary(writer, tmp_path, steps_by="nothing")


def _run_ahead(kernel_us: float) -> TraceWriter:
    writer = TraceWriter()
    for number in range(5):
        writer.step(number, number * STEP, STEP)
        for call in range(10):
            at = number * STEP + 100 * call
            writer.launch("gemm", (at + 10, 5), (20 + (10 * number + call) * kernel_us, kernel_us))
    return writer


def test_a_steps_device_work_counts_where_it_runs_after_the_mark(tmp_path: Path) -> None:
    a, b = (summary(_run_ahead(us), tmp_path, f"{us}.json") for us in (1000, 2000))
    assert (a.step_ms["p50"], b.step_ms["p50"]) == pytest.approx((1, 1))
    assert a.device_step_ms is not None
    assert a.device_step_ms["p50"] == pytest.approx(10, rel=0.01)
    assert "10.00 ms until the device has done" in head(a)
    assert sum(row.calls for row in a.kernels) == 50
    found = compare(a, b)
    assert found.slower_by() == pytest.approx(1.0, rel=0.01)
    assert "most of it is compute" in found.text


def test_a_diff_names_the_kernel_that_slowed_by_six_percent(tmp_path: Path) -> None:
    def trace(factor: float) -> TraceWriter:
        writer, generator = TraceWriter(), np.random.default_rng(0)
        for number in range(6):
            at = number * 20 * STEP + generator.uniform(0, 300)
            writer.step(number, at, 19 * STEP + generator.uniform(0, 500))
            for call in range(10):
                writer.launch("gemm", (at + 900 * call, 5), (at + 900 * call + 10, 800 + generator.uniform(0, 9)))
            writer.launch("softmax", (at + 10_000, 5), (at + 10_010, factor * (300 + generator.uniform(0, 5))))
        return writer

    a, b = (summary(trace(factor), tmp_path, f"{factor}.json") for factor in (1.0, 1.06))
    found = compare(a, b)
    assert found.text.startswith("No difference")
    assert "kernel softmax moved most" in found.text
    assert "(+6%)" in found.text
    assert [change.name for change in found.changes if change.differs] == ["softmax"]
    assert "kernel" not in compare(a, a).text
