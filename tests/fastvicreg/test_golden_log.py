"""The golden loss log: every term of every step of three epochs stays what it was, however the code is moved.

Where the committed log was made on a machine like this one, every bit must repeat. Elsewhere oneDNN and MKL choose
other code. Forced to AVX2 and to SSE4 by their variables, they gave the committed log to 16 ulps up to step 5; then a
rounding turned one ReLU's sign, after which the total stayed within 450 ulps and the terms within 17,000.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden
import pytest
from golden import Rows

from fastvicreg.config import TrainConfig

ULP = 2.0**-23
EARLY, EARLY_ULPS = 5, 64
LATE_TOTAL_ULPS, LATE_TERM_ULPS = 1 << 11, 1 << 15
KNN_ULPS = 1 << 21
"""One of twenty images."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.write_data(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads(golden.FILE.read_text())


def assert_golden(found: Rows, name: str, committed: dict[str, Any]) -> None:
    expected = committed["logs"][name]
    assert len(expected) == 12
    if committed["fingerprint"] == golden.fingerprint():
        assert found == expected
    else:
        assert_within_ulps(found, expected)


def assert_within_ulps(found: Rows, expected: Rows) -> None:
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for row, other in zip(found, expected, strict=True):
        for name, value in other.items():
            assert row[name] == pytest.approx(value, rel=bound(name, row["step"]) * ULP, abs=0), (name, row["step"])


def bound(name: str, step: int) -> int:
    if name == "knn":
        return KNN_ULPS
    late = LATE_TOTAL_ULPS if name == "total" else LATE_TERM_ULPS
    return EARLY_ULPS if step <= EARLY else late


@pytest.mark.parametrize("loss", ["reference", "gram"])
def test_native_repeats_the_log(data: Path, tmp_path: Path, committed: dict[str, Any], loss: str) -> None:
    assert_golden(golden.trained(golden.config(data, loss=loss), tmp_path / "run"), loss, committed)


def test_joint_views_are_within_the_bounds_of_other_machines(
    data: Path, tmp_path: Path, committed: dict[str, Any]
) -> None:
    assert TrainConfig().run.views == "joint"
    found = golden.trained(golden.config(data, views="joint"), tmp_path / "run")
    assert_within_ulps(found, committed["logs"]["gram"])


def test_ffcv_repeats_the_log_of_native(data: Path, tmp_path: Path, committed: dict[str, Any]) -> None:
    pytest.importorskip("ffcv", reason="FFCV is not installed")
    assert_golden(golden.trained(golden.config(data, pipeline="ffcv"), tmp_path / "run"), "gram", committed)


def test_a_run_resumed_in_mid_epoch_repeats_the_log(data: Path, tmp_path: Path, committed: dict[str, Any]) -> None:
    assert_golden(golden.resumed(golden.config(data), tmp_path / "run", after=5), "gram", committed)


@pytest.mark.slow
def test_two_processes_repeat_their_log(data: Path, tmp_path: Path, committed: dict[str, Any]) -> None:
    found = golden.launched(golden.config(data), tmp_path / "run", processes=2)
    assert_golden(found, "gram, 2 processes", committed)


def test_the_bounds_tell_another_run(committed: dict[str, Any]) -> None:
    """Negative control: a term that moves by a thousandth in an early step is found, and so is another loss's log."""
    expected = committed["logs"]["gram"]
    moved = [row | {"covariance": row["covariance"] * 1.001} if row["step"] == 2 else row for row in expected]
    with pytest.raises(AssertionError, match="covariance"):
        assert_within_ulps(moved, expected)
    assert len({row["total"] for row in expected if "total" in row}) == 9
    assert expected != committed["logs"]["gram, 2 processes"]
