"""Interrupted conversions to tar shards: continued to the same bytes, whatever stopped them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mixed import write_mixed

from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert import Progress, Settings, convert_dataset
from fastvicreg.pipelines.formats.shards import writer as shard_writer

SHARDS = Settings(format="dali", shard_size=20 << 10)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "mixed")


def content(folder: Path) -> dict[str, bytes]:
    """All files of a converted folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Stop(Exception):
    """Raised by a test in the middle of a conversion."""


def stop_after(count: int) -> Callable[[Progress], None]:
    def check(progress: Progress) -> None:
        if progress.done >= count:
            raise Stop

    return check


@pytest.mark.parametrize("commit_seconds", [0.0, 1e9])
def test_interrupted_anywhere_it_continues_to_the_same_bytes(
    mixed: Path, tmp_path: Path, commit_seconds: float
) -> None:
    convert_dataset(mixed, tmp_path / "whole", SHARDS)
    for count in range(1, 14):
        target = tmp_path / str(count)
        with pytest.raises(Stop):
            convert_dataset(mixed, target, SHARDS, on_progress=stop_after(count), commit_seconds=commit_seconds)
        assert not target.exists()
        assert convert_dataset(mixed, target, SHARDS).resumed == count
        assert content(target) == content(tmp_path / "whole")
        assert not target.with_name(f"{count}.partial").exists()


@pytest.mark.slow
def test_a_killed_process_loses_only_what_was_not_committed(mixed: Path, tmp_path: Path) -> None:
    convert_dataset(mixed, tmp_path / "whole", SHARDS)
    code = (
        "import os, sys; from fastvicreg.pipelines.convert import Settings, convert_dataset\n"
        "def kill(p):\n    if p.done == 11: os.kill(os.getpid(), 9)\n"
        "settings = Settings(format='dali', shard_size=20 << 10)\n"
        "convert_dataset(sys.argv[1], sys.argv[2], settings, on_progress=kill, commit_seconds=0)"
    )
    target = tmp_path / "killed"
    died = subprocess.run([sys.executable, "-c", code, str(mixed), str(target)], timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert convert_dataset(mixed, target, SHARDS).resumed == 10
    assert content(target) == content(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_continues_when_there_is_room(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_dataset(mixed, tmp_path / "whole", SHARDS)
    room = shard_writer.write_all
    for allowed in (0, 1, 10, 29):  # three writes a sample, of ten
        target, calls = tmp_path / f"x{allowed}", []

        def full(handle: int, data: bytes, offset: int, calls: list[int] = calls, allowed: int = allowed) -> None:
            calls.append(offset)
            if len(calls) > allowed:
                room(handle, data[: len(data) // 2], offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            room(handle, data, offset)

        monkeypatch.setattr(shard_writer, "write_all", full)
        with pytest.raises(UserError, match=r"no room for .*x\d+ .*the same command again"):
            convert_dataset(mixed, target, SHARDS)
        assert not target.exists()
        monkeypatch.setattr(shard_writer, "write_all", room)
        convert_dataset(mixed, target, SHARDS)
        assert content(target) == content(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["first cut", "first longer", "last cut", "first gone"])
def test_shards_that_are_not_as_the_journal_says_are_refused(mixed: Path, tmp_path: Path, damage: str) -> None:
    target = tmp_path / "x"
    with pytest.raises(Stop):
        convert_dataset(mixed, target, SHARDS, on_progress=stop_after(13))
    tars = sorted((tmp_path / "x.partial" / "data").glob("*.tar"))
    assert len(tars) > 2
    path = tars[0] if damage.startswith("first") else tars[-1]
    if damage.endswith("gone"):
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + (512 if damage.endswith("longer") else -1))
    with pytest.raises(UserError, match=rf"{path.name} has \d+ bytes, its journal says \d+: delete .*x\.partial"):
        convert_dataset(mixed, target, SHARDS)


def test_leftovers_in_the_unfinished_folder_are_not_published(mixed: Path, tmp_path: Path) -> None:
    convert_dataset(mixed, tmp_path / "whole", SHARDS)
    target = tmp_path / "x"
    with pytest.raises(Stop):
        convert_dataset(mixed, target, SHARDS, on_progress=stop_after(7))
    data = tmp_path / "x.partial" / "data"
    (data / "shard-000099.tar").write_bytes(b"left")
    (data / "shard-000000.idx").write_bytes(b"left")
    (data / "folder").mkdir()
    convert_dataset(mixed, target, SHARDS)
    assert content(target) == content(tmp_path / "whole")
