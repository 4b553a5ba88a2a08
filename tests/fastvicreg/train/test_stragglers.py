"""A process whose images come late is named, and nobody else."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from fastvicreg.contracts import FaultReport
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import Recorder
from fastvicreg.train.stragglers import Waits, straggler, tell_epoch


def said(*waits: float) -> str:
    """What is shown after an epoch of processes with these waits."""
    screen = StringIO()
    told = [(FaultReport({}, ()), wait) for wait in waits]
    tell_epoch(3, 40, told, Display(Console(file=screen, width=200)), Recorder(None))
    return screen.getvalue()


def test_the_one_that_waits_longest_is_named_beside_the_median_of_the_others() -> None:
    assert straggler([0.1, 0.4, 0.0, 0.02]) == (1, 0.4, 0.02)
    assert "epoch 3: process 1 waited for its images 40% of the time, the others 2%" in said(0.1, 0.4, 0.0, 0.02)


@pytest.mark.parametrize("waits", [(0.9,), (0.5, 0.47), (0.0, 0.0, 0.04)])
def test_nobody_is_named_alone_or_among_equals(waits: tuple[float, ...]) -> None:
    assert said(*waits) == ""


def test_a_share_is_of_the_time_since_it_was_last_asked_for() -> None:
    waits = Waits()
    assert waits.take() == 0.0
    waits.see([{"images_per_s": 100.0, "data_wait": 0.5}, {"images_per_s": 25.0, "data_wait": 0.0}])
    assert waits.take() == pytest.approx(0.1)  # .5 of one unit of time, none of four
    assert waits.take() == 0.0
