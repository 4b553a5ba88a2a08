"""Differences between traces that were made to differ in known parts, and none between those that were not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from traces import TraceWriter, device_trace

from fastvicreg.profiles.trace.diff import Change, Difference, compare
from fastvicreg.profiles.trace.events import read_trace
from fastvicreg.profiles.trace.summary import summarize


def difference(a: TraceWriter, b: TraceWriter, folder: Path) -> Difference:
    """Of b from a."""
    pair = [summarize(read_trace(w.write(folder / f"{name}.json"))) for name, w in (("a", a), ("b", b))]
    return compare(*pair)


def of(found: Difference, kind: str, name: str) -> Change:
    (change,) = [change for change in found.changes if (change.kind, change.name) == (kind, name)]
    return change


def test_a_trace_does_not_differ_from_itself(tmp_path: Path) -> None:
    found = difference(device_trace(), device_trace(), tmp_path)
    assert found.text.startswith("No difference")
    assert not any(change.differs for change in found.changes)
    assert found.slower_by() == 0


def test_the_part_that_changed_is_named(tmp_path: Path) -> None:
    found = difference(device_trace(data_us=800), device_trace(data_us=300), tmp_path)
    assert "33% faster" in found.text
    assert "most of it is data" in found.text
    assert of(found, "idle", "data").delta == pytest.approx(-0.5)
    assert of(found, "stage", "enumerate(DataLoader)").differs
    assert not of(found, "device", "compute").differs
    assert found.slower_by() < 0


def test_kernels_and_operators_are_compared_by_shape_and_bare_name(tmp_path: Path) -> None:
    found = difference(device_trace(gemm_us=300), device_trace(gemm_us=450), tmp_path)
    assert found.slower_by() == pytest.approx(0.15)
    assert "most of it is compute" in found.text
    kernel = of(found, "kernel", "ampere_sgemm_#x#_tn")
    assert (kernel.a.ms, kernel.b.ms, kernel.differs) == (pytest.approx(0.3), pytest.approx(0.45), True)
    op = of(found, "op device", "aten::mm([512,1024], [1024,256])")
    assert (op.a.ms, op.b.ms) == (pytest.approx(0.3), pytest.approx(0.45))
    assert not of(found, "op host", "aten::mm([512,1024], [1024,256])").differs


@pytest.mark.parametrize(("jitter", "differs"), [(0.002, True), (0.3, False)])
def test_what_the_steps_spread_over_is_no_difference(jitter: float, differs: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def trace(factor: float) -> TraceWriter:
        writer, at = TraceWriter(), 0.0
        for number in range(40):
            length = 1000 * factor * (1 + jitter * generator.uniform(-1, 1))
            writer.step(number, at, length)
            writer.op("aten::mm", at, length)
            at += length + 1
        return writer

    found = difference(trace(1.0), trace(1.06), tmp_path)
    assert found.step.differs is differs
    assert found.text.startswith("No difference") is not differs
    assert (found.slower_by() > 0.05) is differs


def test_a_part_that_only_one_trace_has_counts_as_nothing_in_the_other(tmp_path: Path) -> None:
    more = device_trace()
    for number in range(3):
        more.launch("extra_kernel", (10_000 + 1000 * number + 395, 3), (10_000 + 1000 * number + 850, 80))
    found = difference(device_trace(), more, tmp_path)
    change = of(found, "kernel", "extra_kernel")
    assert (change.a.ms, change.b.ms) == (0.0, pytest.approx(0.08))
    assert change.differs
    assert "moved by" in found.text


def test_with_one_host_trace_only_the_host_is_compared(tmp_path: Path) -> None:
    host = TraceWriter()
    for number in range(3):
        host.step(number, 1000 * number, 900)
        host.op("aten::mm", 1000 * number, 900)
    found = difference(device_trace(), host, tmp_path)
    assert {change.kind for change in found.changes} == {"step", "stage", "op host"}
    assert any("no device" in note for note in found.notes)
