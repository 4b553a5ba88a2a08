"""What a run records can be read back, continued and trusted."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvicreg.contracts import Cursor, Terms
from fastvicreg.errors import UserError
from fastvicreg.show.display import sparkline
from fastvicreg.show.metrics import FILE, Recorder, read


def push(recorder: Recorder, step: int, value: float) -> None:
    terms = Terms(torch.tensor(value), {"invariance": torch.tensor(value / 2)})
    recorder.step(step, Cursor(0, step - 1), terms, {"lr": 0.1}, images=8, data_wait=0.0)


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


class _FullDisk(io.StringIO):
    """Takes half of the second line and refuses the rest, as a disk does that fills up."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._lines = path, 0

    def write(self, text: str) -> int:
        self._lines += 1
        with self._path.open("a") as file:
            file.write(text if self._lines == 1 else text[: len(text) // 2])
        if self._lines > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(text)


class Copied:
    """Stands for the event behind a step's copy; a device has done the step once its number is at most ``done``."""

    done, asked = 0, list[int]()

    def __init__(self, step: int) -> None:
        self.step = step

    def synchronize(self) -> None:
        Copied.asked.append(self.step)
        assert self.step <= Copied.done, "waits for the device"


def test_the_newest_steps_of_a_device_are_left_until_it_has_done_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count(1)
    monkeypatch.setattr("fastvicreg.show.metrics.to_host", lambda values: (values, Copied(next(numbers))))
    recorder = Recorder(tmp_path)
    for step in (1, 2):
        push(recorder, step, float(step))
    assert recorder.flush(late=2) == []
    for step in (3, 4, 5):
        push(recorder, step, float(step))
    Copied.done = 3
    assert [row["step"] for row in recorder.flush(late=2)] == [1, 2, 3]
    assert Copied.asked == [3]  # one wait for the newest of them, none for each
    Copied.done = 5
    recorder.close()
    assert [row["total"] for row in read(tmp_path)] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_on_a_host_nothing_is_late(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    push(recorder, 1, 4.0)
    assert len(recorder.flush(late=2)) == 1


def fill_disk_at_second_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on logs are opened on a disk that has room for one row and a half."""
    plain = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.name == f".{FILE}.tmp":
            plain(path, "w").close()
            return _FullDisk(path.parent / FILE)
        return plain(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)


def test_a_full_disk_is_one_line_and_the_log_is_read_up_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk_at_second_row(monkeypatch)
    recorder = Recorder(tmp_path)
    push(recorder, 1, 4.0)
    assert len(recorder.flush()) == 1
    push(recorder, 2, 3.0)
    with pytest.raises(UserError, match=r"cannot write the log in .*No space left on device; .*--resume"):
        recorder.flush()
    recorder.close()
    monkeypatch.undo()
    assert not (tmp_path / FILE).read_text().endswith("}\n")
    assert [row["step"] for row in read(tmp_path)] == [1]
    resumed = Recorder(tmp_path, resumed_at=1)
    push(resumed, 2, 3.0)
    resumed.close()
    assert [row["total"] for row in read(tmp_path)] == [4.0, 3.0]


def test_a_full_disk_under_tensorboard_is_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recorder = Recorder(tmp_path)
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    push(recorder, 1, 4.0)
    recorder.flush()
    with pytest.raises(UserError, match="No space left on device"):
        recorder.evaluation(1, 0, {"rankme": 2.0})
    recorder.close()
    assert "Traceback" not in capsys.readouterr().err
