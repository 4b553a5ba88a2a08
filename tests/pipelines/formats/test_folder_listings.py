"""The second opening of a large folder takes its kept lists, and no change of the folder goes unseen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvicreg.pipelines.formats.folder import listings, source
from fastvicreg.pipelines.formats.folder.source import FolderSource


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of empty files, one of them with a folder in it; whatever is opened is kept."""
    monkeypatch.setattr(listings, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(listings, "WORTH_KEEPING", 1)
    monkeypatch.setattr(listings, "RECENT", 0.0)
    for name in ("a/1.jpg", "a/2.jpg", "a/.hidden.jpg", "a/notes.txt", "b/deep/3.png", "b/4.JPEG", "b/__MACOSX/5.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "data/a" / os.fsdecode(b"\xff.jpg")).touch()  # a name that is no UTF-8
    return tmp_path / "data"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed, not taken from what is kept."""
    found: list[str] = []
    scan = source.scan
    monkeypatch.setattr(source, "scan", lambda folder: (found.append(str(folder)), scan(folder))[1])
    return found


def told(opened: FolderSource) -> tuple[object, ...]:
    samples = [(opened.name(index), opened.label(index)) for index in range(len(opened))]
    return samples, opened.classes, opened.passed.counts, opened.passed.first


def test_a_folder_that_did_not_change_is_not_listed_again(root: Path, listed: list[str]) -> None:
    first = told(FolderSource(root))
    assert len(listed) == 4
    listed.clear()
    assert told(FolderSource(root)) == first
    assert not listed


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: (root / "a/9.jpg").touch(),
    "removed": lambda root: (root / "a/1.jpg").unlink(),
    "renamed": lambda root: (root / "a/1.jpg").rename(root / "a/0.jpg"),
    "moved": lambda root: (root / "a/1.jpg").rename(root / "b/deep/1.jpg"),
    "a class added": lambda root: ((root / "c").mkdir(), (root / "c/1.jpg").touch()),
    "a class removed": lambda root: shutil.rmtree(root / "a"),
    "classes exchanged": lambda root: (
        (root / "a").rename(root / "x"), (root / "b").rename(root / "a"), (root / "x").rename(root / "b")
    ),
    "a file became a folder": lambda root: (
        (root / "b/4.JPEG").unlink(), (root / "b/4.JPEG").mkdir(), (root / "b/4.JPEG/1.jpg").touch()
    ),
    "something passed over added": lambda root: (root / "b/deep/x.txt").touch(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_noticed(root: Path, change: str) -> None:
    before = told(FolderSource(root))
    CHANGES[change](root)
    after = told(FolderSource(root))
    assert after != before
    shutil.rmtree(root.parent / "cache")
    assert after == told(FolderSource(root))


def test_what_may_be_stale_is_not_kept(root: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a/link.jpg").symlink_to(root / "b/4.JPEG")
    FolderSource(root)
    listed.clear()
    assert len(FolderSource(root)) == 6
    (root / "b/4.JPEG").unlink()  # which leaves no trace in a/
    assert len(FolderSource(root)) == 4
    assert listed.count(str(root / "a")) == 2
    shutil.rmtree(root.parent / "cache")
    monkeypatch.setattr(listings, "RECENT", 3600.0)  # all of this was made within the hour
    FolderSource(root)
    listed.clear()
    FolderSource(root)
    assert len(listed) == 4


def test_a_damaged_cache_is_made_anew_and_a_small_folder_leaves_none(
    root: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = told(FolderSource(root))
    (place,) = (root.parent / "cache/listings").iterdir()
    content = place.read_bytes()
    for damaged in (b"", content[:-3], content[:40] + b"\0" + content[41:]):
        place.write_bytes(damaged)
        listed.clear()
        assert told(FolderSource(root)) == first
        assert len(listed) == 4
        assert place.read_bytes() == content
    place.unlink()
    monkeypatch.setattr(listings, "WORTH_KEEPING", 100)
    FolderSource(root)
    assert not place.exists()
