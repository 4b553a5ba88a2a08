"""A served dataset, and waits that a test has time for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import Website, serving
from ranged import write_all
from served import Served, served_by

from fastvicreg.pipelines.fetch import download, remote


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Website]:
    """A server of all kinds, this user's cache in ``tmp_path``, small requests and short pauses."""
    write_all(tmp_path / "site")
    monkeypatch.setattr("fastvicreg.pipelines.fetch.placed.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(download, "CHUNK", 4096)
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.03))
    monkeypatch.setattr(remote, "STALL", 1.0)
    with serving(tmp_path / "site") as found:
        yield found


@pytest.fixture(params=["gs", "hf"])
def served(request: pytest.FixtureRequest, site: Website, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """``site``'s files in a bucket of Google's storage, and in a dataset of the hub."""
    with served_by(request.param, site.root, monkeypatch) as found:
        yield found
