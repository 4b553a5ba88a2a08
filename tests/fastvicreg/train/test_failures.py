"""What ends a run is one line with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.train.failures import explained


def test_views_that_no_memory_holds_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 800 TB: more than a process may address, so that no machine begins to fill it.
    views = ["--image-size", "65535", "--num-views", "16", "--batch-size", "4096"]
    run = ["--out", str(tmp_path / "run"), "--workers", "1", "--device", "cpu", "--eval-every", "0"]
    assert main(["train", "--preset", "demo", *views, *run]) == 2
    line = capsys.readouterr().err
    assert "this machine's memory does not hold the run" in line
    assert "give less than --batch-size 4096, a smaller --image-size than 65535" in line
    assert line.count("\n") == 1


def test_what_torch_cannot_allocate_is_the_same_line() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    found = explained(refused.value, "", TrainConfig(), processes=1, diverged="")
    assert "this machine's memory does not hold the run" in str(found)
    assert explained(RuntimeError("something else"), "", TrainConfig(), processes=1, diverged="") is None


def test_a_side_beyond_every_image_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--image-size", "99999999999999999999", "--print-config"]) == 2
    assert "larger than any JPEG: give 65535 or less" in capsys.readouterr().err
