"""Conversions that cannot be: one line that names the mistake or the full disk, and nothing under the final name."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mixed import SMALL, both, write_mixed
from PIL import Image

from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert import Settings, Summary, convert_dataset
from fastvicreg.pipelines.formats.beton import writer as beton_writer
from fastvicreg.pipelines.manifest import manifest_path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "mixed")


def test_the_target_must_be_new_outside_and_well_named(mixed: Path, tmp_path: Path) -> None:
    def refused(target: Path, source: Path = mixed) -> str:
        with pytest.raises(UserError) as error:
            convert_dataset(source, target, SMALL)
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "there.beton").write_bytes(b"mine")
    assert "exists" in refused(tmp_path / "there.beton")
    assert (tmp_path / "there.beton").read_bytes() == b"mine"
    (tmp_path / "dangling.beton").symlink_to(tmp_path / "nowhere")
    assert "exists" in refused(tmp_path / "dangling.beton")
    assert "inside its own source" in refused(mixed / "x.beton")
    (tmp_path / "alias").symlink_to(mixed / "a")
    assert "inside its own source" in refused(tmp_path / "alias" / "x.beton")
    assert "does not end in .beton" in refused(tmp_path / "x.tar")
    assert "does not exist" in refused(tmp_path / "no" / "x.beton")
    assert "does not exist" in refused(tmp_path / "x.beton", tmp_path / "nothing")
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(quality=0), "--quality 0"),
        (Settings(quality=101), "--quality 101"),
        (Settings(max_size=-1), "--max-size -1"),
        (Settings(proportion=1.5), "--proportion 1.5"),
        (Settings(proportion=float("nan")), "--proportion nan"),
        (Settings(proportion=0.5, raw=True), "--raw"),
        (Settings(reencode=True, raw=True), "--reencode"),
        (Settings(page_size=3 << 20), "--page-size 3"),
        (Settings(page_size=1 << 20), "--page-size 1"),
        (Settings(page_size=4096 << 20), "--page-size 4096"),
        (Settings(page_size=0), "--page-size 0"),
        (Settings(seed=-1), "--seed -1"),
        (Settings(format="fcv"), "did you mean 'ffcv'"),
    ],
)
def test_settings_that_cannot_be_are_named(mixed: Path, tmp_path: Path, settings: Settings, says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert_dataset(mixed, tmp_path / "x.beton", settings)
    assert not list(tmp_path.glob("x.*"))


def test_a_source_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 1 samples .*a\.jpg: not an image"):
        convert_dataset(tmp_path / "x", tmp_path / "x.beton", SMALL)
    assert not (tmp_path / "x.beton").exists()


@pytest.mark.parametrize(
    ("name", "settings"),
    [("x.beton", SMALL), ("shards", Settings(format="dali")), ("raw.beton", Settings(raw=True, page_size=1 << 21))],
)
def test_an_image_wider_than_a_jpeg_may_be_is_skipped_with_the_way_out(
    tmp_path: Path, name: str, settings: Settings
) -> None:
    (tmp_path / "wide").mkdir()
    for width in (65500, 65501, 65600):
        Image.new("L", (width, 1)).save(tmp_path / "wide" / f"{width}.png")
    summary = convert_dataset(tmp_path / "wide", tmp_path / name, settings)
    assert (summary.images, [entry.path for entry in summary.skipped]) == (1, ["65501.png", "65600.png"])
    assert all("do not fit; --max-size shrinks it" in entry.reason for entry in summary.skipped)
    shrunk = convert_dataset(tmp_path / "wide", tmp_path / f"small-{name}", replace(settings, max_size=2000))
    assert shrunk.images == 3


def test_a_full_disk_is_one_line_and_continues_when_there_is_room(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_dataset(mixed, tmp_path / "whole.beton", SMALL)
    room = beton_writer.write_all
    for allowed in (0, 4, 10, 11):  # ten samples, then table and index
        target, calls = tmp_path / f"x{allowed}.beton", []

        def full(handle: int, data: bytes, offset: int, calls: list[int] = calls, allowed: int = allowed) -> None:
            calls.append(offset)
            if len(calls) > allowed:
                room(handle, data[: len(data) // 2], offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            room(handle, data, offset)

        monkeypatch.setattr(beton_writer, "write_all", full)
        with pytest.raises(UserError, match=r"no room for .*x\d+\.beton .*the same command again"):
            convert_dataset(mixed, target, SMALL)
        assert not target.exists()
        assert not manifest_path(target).exists()
        monkeypatch.setattr(beton_writer, "write_all", room)
        convert_dataset(mixed, target, SMALL)
        assert both(target) == both(tmp_path / "whole.beton")


@pytest.mark.slow
def test_a_file_size_limit_is_one_line(mixed: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.beton"
    code = (
        "import sys; from fastvicreg.cli import main; "
        "sys.exit(main(['convert', sys.argv[1], sys.argv[2], '--page-size', '2']))"
    )
    limit = (2 << 20) + 3000
    ran = subprocess.run(
        [sys.executable, "-c", code, str(mixed), str(target)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("fastvicreg: no room for")
    assert len(ran.stderr.splitlines()) == 1
    assert not target.exists()
    summary: Summary = convert_dataset(mixed, target, SMALL)
    assert summary.images == 10
