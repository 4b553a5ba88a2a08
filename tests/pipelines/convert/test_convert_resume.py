"""Interrupted conversions: continued to the same bytes, whatever stopped them; other work is never mixed in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import encoded, photo
from mixed import SMALL, both, write_mixed

from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Progress, Settings, convert_dataset, workspace
from fastvicreg.pipelines.convert.journal import ENTRY, Journal
from fastvicreg.pipelines.manifest import manifest_path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "mixed")


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
    settings = replace(SMALL, proportion=0.6)
    convert_dataset(mixed, tmp_path / "whole.beton", settings)
    for count in range(1, 14):
        target = tmp_path / f"{count}.beton"
        with pytest.raises(Stop):
            convert_dataset(mixed, target, settings, on_progress=stop_after(count), commit_seconds=commit_seconds)
        assert not target.exists()
        assert not manifest_path(target).exists()
        seen: list[Progress] = []
        summary = convert_dataset(mixed, target, settings, on_progress=seen.append)
        assert summary.resumed == count
        assert [entry.done for entry in seen] == list(range(count + 1, 14))
        assert both(target) == both(tmp_path / "whole.beton")
        assert len(summary.skipped) == 3
        assert not target.with_name(f"{target.name}.partial").exists()


@pytest.mark.slow
def test_a_killed_process_loses_only_what_was_not_committed(mixed: Path, tmp_path: Path) -> None:
    convert_dataset(mixed, tmp_path / "whole.beton", SMALL)
    target = tmp_path / "killed.beton"
    code = (
        "import os, sys; from fastvicreg.pipelines.convert import Settings, convert_dataset\n"
        "def kill(p):\n    if p.done == 9: os.kill(os.getpid(), 9)\n"
        "convert_dataset(sys.argv[1], sys.argv[2], Settings(page_size=1 << 21), on_progress=kill, commit_seconds=0)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(mixed), str(target)], timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert not target.exists()
    assert convert_dataset(mixed, target, SMALL).resumed == 8
    assert both(target) == both(tmp_path / "whole.beton")


@pytest.mark.slow
def test_a_journal_cut_anywhere_continues_to_the_same_bytes(mixed: Path, tmp_path: Path) -> None:
    convert_dataset(mixed, tmp_path / "whole.beton", SMALL)
    expected = both(tmp_path / "whole.beton")
    target = tmp_path / "cut.beton"
    with pytest.raises(Stop):
        convert_dataset(mixed, target, SMALL, on_progress=stop_after(11), commit_seconds=0)
    partial = target.with_name("cut.beton.partial")
    kept = {path.name: path.read_bytes() for path in partial.iterdir()}
    resumed = set()
    for length in (*range(0, len(kept["journal"]), 7), len(kept["journal"])):
        partial.mkdir(exist_ok=True)
        for name, content in kept.items():
            (partial / name).write_bytes(content)
        (partial / "journal").write_bytes(kept["journal"][:length])
        resumed.add(convert_dataset(mixed, target, SMALL).resumed)
        assert both(target) == expected
        target.unlink()
    assert resumed == set(range(12))


def test_a_journal_drops_a_frame_with_a_flipped_bit(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    entries = np.zeros(3, ENTRY)
    entries["size"] = (5, 6, 7)
    journal.append(entries[:2], ["a reason"])
    first = (tmp_path / "journal").stat().st_size
    journal.append(entries[2:], [])
    journal.close()
    whole = (tmp_path / "journal").read_bytes()
    for at in range(first, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 16
        (tmp_path / "journal").write_bytes(damaged)
        again = Journal(tmp_path / "journal")
        again.close()
        assert again.entries["size"].tolist() == [5, 6]
        assert again.reasons == ["a reason"]
        assert (tmp_path / "journal").stat().st_size == first


def test_data_shorter_than_its_journal_is_refused(mixed: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.beton"
    with pytest.raises(Stop):
        convert_dataset(mixed, target, SMALL, on_progress=stop_after(11))
    data = tmp_path / "x.beton.partial" / "data"
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(UserError, match=r"shorter than its journal"):
        convert_dataset(mixed, target, SMALL)


@pytest.mark.parametrize("change", [{"quality": 80}, {"max_size": 50}, {"raw": True}, {"seed": 3}, {"new file": True}])
def test_another_commands_leftovers_are_not_mixed_in(mixed: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    target = tmp_path / "x.beton"
    with pytest.raises(Stop):
        convert_dataset(mixed, target, SMALL, on_progress=stop_after(5))
    settings = SMALL
    if "new file" in change:
        (mixed / "a" / "another.jpg").write_bytes(encoded(photo(9, 30, 30)))
    else:
        settings = replace(SMALL, **change)
    with pytest.raises(UserError, match="another command") as refused:
        convert_dataset(mixed, target, settings)
    assert str(tmp_path / "x.beton.partial") in str(refused.value)
    assert not target.exists()


@pytest.mark.parametrize("settings", [SMALL, Settings(format="dali", shard_size=8 << 10)])
def test_a_skipped_sample_that_was_mended_is_taken_when_the_conversion_continues(
    mixed: Path, tmp_path: Path, settings: Settings
) -> None:
    name = "x.beton" if settings.format == "beton" else "x"
    with pytest.raises(Stop):
        convert_dataset(mixed, tmp_path / name, settings, on_progress=stop_after(12))
    (mixed / "b/empty.jpg").write_bytes(encoded(photo(8, 50, 40)))
    summary = convert_dataset(mixed, tmp_path / name, settings)
    assert (summary.images, len(summary.skipped)) == (11, 2)
    assert any("empty.jpg was skipped before and can be read now" in note for note in summary.notes)
    convert_dataset(mixed, tmp_path / f"whole-{name}", settings)
    for mine, whole in zip(files(tmp_path / name), files(tmp_path / f"whole-{name}"), strict=True):
        assert mine.read_bytes() == whole.read_bytes()


def files(target: Path) -> list[Path]:
    return sorted(target.iterdir()) if target.is_dir() else [target, manifest_path(target)]


def test_what_changed_since_the_interruption_is_said_in_words(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        convert_dataset(mixed, tmp_path / "x.beton", SMALL, on_progress=stop_after(5))

    def refused(settings: Settings = SMALL) -> str:
        with pytest.raises(UserError) as error:
            convert_dataset(mixed, tmp_path / "x.beton", settings)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "(--quality was 90 and is 80; --raw was False and is True)" in refused(replace(SMALL, quality=80, raw=True))
    (mixed / "a/another.jpg").write_bytes(encoded(photo(9, 30, 30)))
    assert "(in the source 1 file added (such as a/another.jpg))" in refused()
    (mixed / "a/grey.jpg").unlink()
    (mixed / "a/cmyk.jpg").unlink()
    assert "1 file added (such as a/another.jpg), 2 files removed (such as a/cmyk.jpg)" in refused()
    (tmp_path / "x.beton.partial" / "names").write_bytes(b"cut")
    assert "other files or classes" in refused()


@pytest.mark.parametrize(("most", "says"), [("2", "more than --max-skipped 2"), ("20%", "more than --max-skipped 20%")])
def test_too_many_skipped_samples_end_it_and_the_work_is_kept(
    mixed: Path, tmp_path: Path, most: str, says: str
) -> None:
    with pytest.raises(UserError, match=says) as refused:
        convert_dataset(mixed, tmp_path / "x.beton", SMALL, max_skipped=most)
    assert "3 of the first 9 samples were skipped" in str(refused.value)
    assert not (tmp_path / "x.beton").exists()
    summary = convert_dataset(mixed, tmp_path / "x.beton", SMALL, max_skipped="25%")
    assert summary.resumed == 9
    convert_dataset(mixed, tmp_path / "whole.beton", SMALL)
    assert both(tmp_path / "x.beton") == both(tmp_path / "whole.beton")


@pytest.mark.parametrize("most", ["few", "-1", "1.5", "101%", "%", "nan%"])
def test_a_limit_that_is_none_is_named(mixed: Path, tmp_path: Path, most: str) -> None:
    with pytest.raises(UserError, match=f"--max-skipped {most}: give a number"):
        convert_dataset(mixed, tmp_path / "x.beton", SMALL, max_skipped=most)


@pytest.mark.parametrize("split", [False, True])
def test_a_kill_after_the_last_rename_leaves_nothing_behind_for_long(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], split: bool
) -> None:
    source, target = mixed, tmp_path / "data.beton"
    if split:
        source, target = tmp_path / "root", tmp_path / "out" / "train.beton"
        (source / "train").mkdir(parents=True)
        shutil.copytree(mixed, source / "train" / "a")
        shutil.copytree(mixed, source / "val" / "a")
    command = ["convert", str(source), str(target.parent if split else target)]

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workspace.shutil, "rmtree", killed)
        assert main(command) == 130
    left = target.with_name(f"{target.name}.partial")
    assert sorted(path.name for path in left.iterdir()) == ["command.json", "journal", "lock", "names"]
    whole = target.read_bytes()
    capsys.readouterr()
    assert main(command) == (0 if split else 2)
    assert f"{target} {'is there already, complete' if split else 'exists: delete it'}" in "".join(capsys.readouterr())
    assert target.read_bytes() == whole
    assert not left.exists()


def test_two_at_once_are_refused(mixed: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.beton"
    met = []

    def again(progress: Progress) -> None:
        if progress.done == 3:
            with pytest.raises(UserError, match="another conversion is writing"):
                convert_dataset(mixed, target, SMALL)
            met.append(progress)

    convert_dataset(mixed, target, SMALL, on_progress=again)
    assert len(met) == 1
    assert len(open_source(target)) == 10
