"""What ``fastvicreg train`` says to settings that no run can have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fastvicreg.cli import main


def assert_refused(arguments: Sequence[str], said: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with ``said`` in it, exit code 2, and no folder ``out``."""
    assert main(["train", "--preset", "demo", *arguments, "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not out.exists()
