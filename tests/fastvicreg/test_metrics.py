"""What a run records can be read back, continued and trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastvicreg.contracts import Cursor, Terms
from fastvicreg.display import sparkline
from fastvicreg.errors import UserError
from fastvicreg.metrics import FILE, Recorder, rank_me, read


def push(recorder: Recorder, step: int, value: float) -> None:
    terms = Terms(torch.tensor(value), {"invariance": torch.tensor(value / 2)})
    recorder.step(step, Cursor(0, step - 1), terms, lr=0.1, images=8, data_wait=0.0)


def test_rows_are_written_in_order_and_read_back(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    push(recorder, 1, 4.0)
    push(recorder, 2, 2.0)
    assert read(tmp_path) == []
    assert [row["total"] for row in recorder.flush()] == [4.0, 2.0]
    recorder.evaluation(2, 0, {"knn": 50.0})
    recorder.close()
    rows = read(tmp_path)
    assert [row.get("invariance") for row in rows] == [2.0, 1.0, None]
    assert rows[2] == {"epoch": 0, "step": 2, "knn": 50.0}
    assert rows[0]["images_per_s"] > 0
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_resumed_recorder_drops_what_will_be_made_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    for step in range(1, 6):
        push(recorder, step, float(step))
    recorder.close()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"epoch": 0, "st')  # cut by a kill
    again = Recorder(tmp_path, resumed_at=3)
    push(again, 4, 40.0)
    again.close()
    assert [row["total"] for row in read(tmp_path)] == [1.0, 2.0, 3.0, 40.0]


def test_every_line_is_plain_json_even_for_nan(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    push(recorder, 1, float("nan"))
    recorder.close()

    def forbidden(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    (line,) = (tmp_path / FILE).read_text().splitlines()
    assert json.loads(line, parse_constant=forbidden)["total"] is None


def test_a_sparkline_survives_what_is_not_finite() -> None:
    assert len(sparkline([1.0, float("nan"), float("inf"), 2.0])) == 2
    assert sparkline([float("nan")]) == ""


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a run"):
        read(tmp_path)


def test_rankme_counts_the_dimensions_in_use() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64))[0]
    for rank in (1, 5, 64):
        coordinates = torch.linalg.qr(torch.randn(200, rank))[0]
        assert rank_me(coordinates @ basis[:rank]) == pytest.approx(rank, rel=0.01)
    assert rank_me(100 * basis) == pytest.approx(rank_me(basis))
