"""New files added to what was converted: what is promised of bytes, classes and interruptions."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from images import encoded, photo

from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Settings, append_dataset, conversion, convert_dataset, prepare
from fastvicreg.pipelines.convert import workspace as workspaces
from fastvicreg.pipelines.manifest import manifest_path, read_manifest
from fastvicreg.pipelines.verify import verify_dataset

PAGE = 1 << 21


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    """12 JPEGs of three classes, one of them damaged."""
    root = make_folder(train=12, val=0)
    (root / "class1/004.jpg").write_bytes(b"\xff\xd8 no more")
    return root


def grow(root: Path) -> None:
    """New images: among the old ones, in a class before all of them and in one behind; the damaged one is mended."""
    for number, name in enumerate(
        ("class0/001x.jpg", "apples/1.png", "apples/2.jpg", "zebras/1.jpg", "class1/004.jpg")
    ):
        (root / name).parent.mkdir(exist_ok=True)
        kind = "PNG" if name.endswith("png") else "JPEG"
        (root / name).write_bytes(encoded(photo(100 + number, 50, 40 + number), kind))


def content(data: Path) -> dict[str, tuple[bytes, str]]:
    """{name: (bytes, class's name)} of a converted dataset."""
    source = open_source(data)
    return {source.name(i): (bytes(source.encoded(i)), source.classes[source.label(i)]) for i in range(len(source))}


@pytest.mark.parametrize("options", [{}, {"raw": True}, {"max_size": 42, "quality": 70}, {"proportion": 0.5}])
def test_a_beton_becomes_what_a_whole_conversion_gives(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    settings = Settings(page_size=PAGE, **options)
    convert_dataset(folder, tmp_path / "a.beton", settings)
    grow(folder)
    convert_dataset(folder, tmp_path / "whole.beton", settings)
    asked: list[str] = []

    def counted(source, index, settings):  # type: ignore[no-untyped-def]
        asked.append(source.name(index))
        return prepare.prepare(source, index, settings)

    monkeypatch.setattr(conversion, "prepare", counted)
    summary = append_dataset(folder, tmp_path / "a.beton", settings)
    assert sorted(asked) == sorted(
        ["class0/001x.jpg", "apples/1.png", "apples/2.jpg", "zebras/1.jpg", "class1/004.jpg"]
    )
    if "proportion" not in options:  # which samples are pixels is drawn by their places
        assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()
        ours, theirs = (manifest_path(tmp_path / f"{name}.beton").read_bytes() for name in ("a", "whole"))
        assert ours == theirs
    assert summary.images == 16
    assert summary.classes == 5
    assert "5 new samples; the 11 of before were taken as they were" in summary.notes
    assert not verify_dataset(tmp_path / "a.beton", decode=True).findings
    again = append_dataset(folder, tmp_path / "a.beton", settings)
    assert again.notes == (f"nothing new: {tmp_path / 'a.beton'} is as it was",)
    assert not list(tmp_path.glob("*.partial"))


def test_shards_get_more_shards_and_keep_their_own(folder: Path, tmp_path: Path) -> None:
    settings = Settings(format="shards", shard_size=20 << 10)
    convert_dataset(folder, tmp_path / "s", settings)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").glob("shard-*")}
    shutil.copytree(tmp_path / "s", tmp_path / "t")
    grow(folder)
    summary = append_dataset(folder, tmp_path / "s", settings)
    after = {path.name: path.read_bytes() for path in (tmp_path / "s").glob("shard-*")}
    assert {name: data for name, data in after.items() if name in before} == before
    assert len(after) > len(before)
    assert summary.images == 5
    convert_dataset(folder, tmp_path / "whole", settings)
    assert content(tmp_path / "s") == content(tmp_path / "whole")
    manifest = read_manifest(tmp_path / "s/dataset.manifest")
    assert manifest.classes == ("class0", "class1", "class2", "apples", "zebras")
    assert manifest.skipped == ()  # the mended one was tried again
    assert not verify_dataset(tmp_path / "s", decode=True).findings
    append_dataset(folder, tmp_path / "t", settings, workers=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()
    }
    keys = [line.split()[3] for path in sorted((tmp_path / "s").glob("*.idx")) for line in path.open() if "jpg" in line]
    assert keys == [f"{number:09d}.jpg" for number in range(16)]


@pytest.mark.parametrize("format", ["beton", "shards"])
def test_a_source_of_new_files_alone_is_added_behind(folder: Path, tmp_path: Path, format: str) -> None:
    target = tmp_path / ("a.beton" if format == "beton" else "a")
    settings = Settings(format=format)
    convert_dataset(folder, target, settings)
    first = content(target)
    (tmp_path / "new").mkdir()
    grow_from = tmp_path / "new"
    for name in ("class2", "class1"):
        (grow_from / name).mkdir()
    (grow_from / "class2/new.jpg").write_bytes(encoded(photo(7, 30, 30)))
    (grow_from / "class1/new.jpg").write_bytes(encoded(photo(8, 30, 30)))
    append_dataset(grow_from, target, settings)
    found = content(target)
    assert {name: value for name, value in found.items() if name in first} == first
    assert {name: value[1] for name, value in found.items() if name not in first} == {
        "class1/new.jpg": "class1",
        "class2/new.jpg": "class2",
    }
    assert list(found)[: len(first)] == list(first)
    assert not verify_dataset(target, decode=True).findings


@pytest.mark.parametrize("format", ["beton", "shards"])
@pytest.mark.parametrize("moment", ["preparing", 0, 1, 2])
def test_an_interrupted_addition_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, moment: str | int
) -> None:
    ending = ".beton" if format == "beton" else ""
    settings = Settings(format=format, shard_size=10 << 10) if format == "shards" else Settings()
    for name in ("a", "b"):
        convert_dataset(folder, tmp_path / f"{name}{ending}", settings)
    grow(folder)
    append_dataset(folder, tmp_path / f"b{ending}", settings)
    target = tmp_path / f"a{ending}"

    def stop(progress: conversion.Progress) -> None:
        if moment == "preparing" and progress.done == 3:
            raise KeyboardInterrupt

    moves = 0
    move = os.replace

    def moved(source: Path, place: Path) -> None:
        nonlocal moves
        if moves == moment and Path(source).parent.name in ("data", "a.partial", "a.beton.partial"):
            raise KeyboardInterrupt
        moves += 1
        move(source, place)

    with monkeypatch.context() as patched:
        patched.setattr(workspaces.os, "replace", moved)
        if moment == 2 and format == "beton":
            moment = 1  # there are two files alone
        with pytest.raises(KeyboardInterrupt):
            append_dataset(folder, target, settings, on_progress=stop, workers=1)
    append_dataset(folder, target, settings)
    assert content(target) == content(tmp_path / f"b{ending}")
    assert not verify_dataset(target, decode=True).findings
    assert not list(tmp_path.glob("*.partial"))


def test_what_another_process_puts_in_its_place_is_left_to_it(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    convert_dataset(folder, target, Settings(format="shards"))
    partial = tmp_path / "shards.partial"
    partial.mkdir()
    (partial / workspaces.READY).touch()
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"another conversion is writing {target}"):
            append_dataset(folder, target, Settings(format="shards"))
        assert (partial / workspaces.READY).exists()
    assert append_dataset(folder, target, Settings(format="shards")).notes == (f"nothing new: {target} is as it was",)
    assert not partial.exists()  # the file that was skipped before has been tried again


def test_what_cannot_be_added_to_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.beton"
    assert main(["convert", str(folder), str(target), "--append"]) == 2
    assert "does not exist: leave --append out" in capsys.readouterr().err
    assert main(["convert", str(folder), str(target), "--quality", "80"]) == 0
    capsys.readouterr()
    assert main(["convert", str(folder), str(target), "--append"]) == 2
    assert "was converted otherwise (--quality was 80 and is 90): give the same options" in capsys.readouterr().err
    manifest_path(target).unlink()
    with pytest.raises(UserError, match="has no manifest, so that its samples have no names"):
        append_dataset(folder, target)


def test_splits_are_added_to_each_and_validation_follows_training_s_numbers(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(train=6, val=3)
    line = ["convert", str(root), str(tmp_path / "out")]
    assert main(line) == 0
    (root / "train/apples").mkdir()
    (root / "train/apples/1.jpg").write_bytes(encoded(photo(3, 30, 30)))
    assert main([*line, "--append"]) == 0
    assert "1 new samples; the 6 of before were taken as they were" in capsys.readouterr().out
    whole = ["convert", str(root), str(tmp_path / "whole")]
    assert main(whole) == 0
    for name in ("train", "val"):
        assert (tmp_path / f"out/{name}.beton").read_bytes() == (tmp_path / f"whole/{name}.beton").read_bytes()
