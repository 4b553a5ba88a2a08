"""Evaluation's tests have a cache of their own, and one run and one file of features to evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastvicreg.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where features are cached: nothing of this user's is read or written."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "fastvicreg" / "features"


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``answer("knn", run, ...)``: exit code and all that ``fastvicreg eval`` prints."""

    def ask(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["eval", *map(str, arguments)])
        shown = capsys.readouterr()
        return code, (shown.out + shown.err).strip()

    return ask


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """A features file's content: three classes, 30 + 12 samples of 8 features, which tell the class apart."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((3, 8))
    made: dict[str, np.ndarray] = {}
    for split, count in (("train", 30), ("val", 12)):
        labels = np.arange(count) % 3
        made[f"{split}_features"] = (centres[labels] + rng.standard_normal((count, 8))).astype(np.float32)
        made[f"{split}_labels"] = labels
    return made
