"""A process whose images come late or whose device is slow is named, and nobody else."""

from __future__ import annotations

import time
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from fastvicreg.contracts import FaultReport
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import Recorder
from fastvicreg.train.stragglers import IMAGES, PASSES, Told, Waits, pace, straggler, tell_epoch


def said(*waits: float, paces: tuple[float, ...] = (), device: str = "cuda:0") -> str:
    """What is shown after an epoch of processes with these waits and paces, by default all alike."""
    screen = StringIO()
    both = zip(waits, paces or [10.0] * len(waits), strict=True)
    told = [Told(FaultReport({}, ()), wait, pace) for wait, pace in both]
    tell_epoch(3, 40, told, Display(Console(file=screen, width=200)), Recorder(None), device=device)
    return screen.getvalue()


def test_the_one_that_waits_longest_is_named_beside_the_median_of_the_others() -> None:
    assert straggler([0.1, 0.4, 0.0, 0.02]) == (1, 0.4, 0.02)
    assert "epoch 3: process 1 waited for its images 40% of the time, the others 2%" in said(0.1, 0.4, 0.0, 0.02)


@pytest.mark.parametrize("waits", [(0.9,), (0.5, 0.47), (0.0, 0.0, 0.04)])
def test_nobody_is_named_alone_or_among_equals(waits: tuple[float, ...]) -> None:
    assert said(*waits) == ""


def test_a_slow_device_is_named_beside_the_median_of_the_others() -> None:
    line = said(0.0, 0.0, 0.0, paces=(30.0, 29.0, 41.0))
    assert "epoch 3: the same pass through the network takes process 2's device 41 ms, the others' 29.5" in line
    assert said(0.0, 0.0, paces=(30.0, 33.0)) == ""
    assert said(0.0, 0.0, paces=(30.0, 40.0), device="cpu") == ""  # processes that share cores take turns
    assert "process 1's device" in said(0.0, 0.0, paces=(30.0, 51.0), device="cpu")
    assert said(0.0, 0.0, paces=(3.0, 9.0), device="cpu") == ""  # another program's turn is as long
    assert said(0.0, paces=(30.0,)) == ""


class Slow(nn.Module):
    """Sleeps in every pass, longer in the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seen: list[tuple[int, bool]] = []

    def forward(self, view: Tensor) -> Tensor:
        time.sleep(0.05 if len(self.seen) < 2 else 0.005)
        self.seen.append((len(view), self.training))
        return self.norm(view)


def test_a_pace_is_of_the_shortest_pass_and_changes_nothing() -> None:
    encoder = Slow()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert 5 <= pace(encoder, torch.randn(IMAGES + 3, 3, 4, 4), "off") < 50
    assert encoder.seen == [(IMAGES, False)] * (1 + PASSES)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_share_is_of_the_time_since_it_was_last_asked_for() -> None:
    waits = Waits()
    assert waits.take() == 0.0
    waits.see([{"images_per_s": 100.0, "data_wait": 0.5}, {"images_per_s": 25.0, "data_wait": 0.0}])
    assert waits.take() == pytest.approx(0.1)  # .5 of one unit of time, none of four
    assert waits.take() == 0.0
