"""Time lost to waiting for data is told once, with the pipeline's name and what to try."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from runs import unevaluated

from fastvicreg.show.display import Display
from fastvicreg.show.watch import DataWaitWatch
from fastvicreg.train.trainer import Trainer


def rows(waits: list[float], images_per_s: float = 100.0) -> list[dict[str, float]]:
    return [{"images_per_s": images_per_s, "data_wait": wait} for wait in waits]


def test_waiting_for_data_is_told_once_and_names_the_pipeline() -> None:
    noticed = DataWaitWatch("native")
    assert noticed.see(rows([1.0] * 10)) is None, "the first steps wait for compilers and a pipeline that is empty"
    assert noticed.see(rows([0.34] * 49)) is None
    told = noticed.see(rows([0.34]))
    assert told is not None
    assert "data_wait 34% of the last 50 steps: the native pipeline" in told
    assert "--pipeline ffcv" in told
    assert noticed.see(rows([0.9] * 200)) is None


def test_a_share_within_bounds_is_not_told_and_long_steps_count_for_more() -> None:
    assert DataWaitWatch("native").see(rows([0.099] * 300)) is None
    # 49 fast steps wait for half their time, one that takes as long as 1,000 of them for none.
    slow = rows([0.0], images_per_s=0.1)
    assert DataWaitWatch("native").see(rows([0.0] * 10) + slow + rows([0.5] * 49)) is None
    told = DataWaitWatch("ffcv", more_workers=False).see(rows([0.0] * 11 + [0.5] * 49))
    assert told is not None
    assert "--" not in told, "what is set already is no advice"


def test_a_run_shows_the_warning_once(make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WINDOW", 3), ("SETTLING", 1), ("LIMIT", -1.0)):
        monkeypatch.setattr(f"fastvicreg.show.watch.{name}", value)
    with (tmp_path / "shown.txt").open("w") as text:
        display = Display(Console(file=text, width=300))
        config = unevaluated(make_folder(val=0), epochs=3, log_every=2)
        Trainer(config, tmp_path / "run", resume=False, display=display).train()
    assert (tmp_path / "shown.txt").read_text().count("of the last 3 steps: the native pipeline") == 1
