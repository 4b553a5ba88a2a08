"""convert --append where files were replaced under their old names, and while a run reads what it adds to."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from images import encoded, photo
from stored import epoch_of, training

from fastvicreg.cli import main
from fastvicreg.contracts import Cursor
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Settings, append_dataset, convert_dataset, replaced
from fastvicreg.pipelines.convert import workspace as workspaces
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.manifest import manifest_path
from fastvicreg.pipelines.verify import verify_dataset

OTHER = encoded(photo(77, 61, 44))


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(train=12, val=0)


def replace_one(root: Path) -> str:
    """Another image under the name, with the times of the old one, as copying with -p leaves them."""
    file = root / "class1/004.jpg"
    status = file.stat()
    (root.parent / "other.jpg").write_bytes(OTHER)
    os.utime(root.parent / "other.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    (root.parent / "other.jpg").replace(file)
    return "class1/004.jpg"


@pytest.mark.parametrize("options", [{}, {"raw": True}, {"max_size": 42}, {"proportion": 0.5}])
def test_a_replaced_file_is_refused_taken_or_left(folder: Path, tmp_path: Path, options: dict) -> None:
    settings, target = Settings(page_size=1 << 21, **options), tmp_path / "a.beton"
    convert_dataset(folder, target, settings)
    before = target.read_bytes()
    name = replace_one(folder)
    (folder / "class0/new.jpg").write_bytes(encoded(photo(5, 40, 40)))
    with pytest.raises(UserError, match=rf"1 file of .* was replaced since .*a\.beton was written \(such as {name}\)"):
        append_dataset(folder, target, settings)
    assert target.read_bytes() == before
    shutil.copy(target, tmp_path / "kept.beton")
    shutil.copy(manifest_path(target), manifest_path(tmp_path / "kept.beton"))
    append_dataset(folder, tmp_path / "kept.beton", settings, replaced="keep")
    summary = append_dataset(folder, target, settings, replaced="take")
    assert "1 new samples; 1 were replaced, the other 11 of before were taken as they were" in summary.notes
    convert_dataset(folder, tmp_path / "whole.beton", settings)
    stored, whole, kept = (open_source(tmp_path / f"{one}.beton") for one in ("a", "whole", "kept"))
    same = [bytes(stored.encoded(index)) == bytes(whole.encoded(index)) for index in range(len(whole))]
    if "proportion" not in options:  # which samples are pixels is drawn by their places
        assert (tmp_path / "whole.beton").read_bytes() == target.read_bytes()
        assert all(same)
    other = [stored.name(index) for index in range(13) if stored.encoded(index) != kept.encoded(index)]
    assert other == [name]
    assert not verify_dataset(target, decode=True).findings
    assert append_dataset(folder, target, settings).notes == (f"nothing new: {target} is as it was",)


def test_shards_do_not_take_what_was_replaced(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["convert", str(folder), str(tmp_path / "s"), "--format", "shards", "--append"]
    convert_dataset(folder, tmp_path / "s", Settings(format="shards"))
    replace_one(folder)
    (folder / "class0/new.jpg").write_bytes(encoded(photo(5, 40, 40)))
    for option in ("refuse", "take"):
        assert main([*line, "--replaced", option]) == 2
        assert "--replaced keep leaves what is stored, a conversion of the whole takes them" in capsys.readouterr().err
    assert main([*line, "--replaced", "keep"]) == 0
    assert len(open_source(tmp_path / "s")) == 13
    assert main([*line[:-1], "--replaced", "take"]) == 2
    assert "--replaced take goes with --append" in capsys.readouterr().err


def test_files_whose_time_alone_changed_are_not_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(max_size=42, reencode=True)
    convert_dataset(folder, tmp_path / "a.beton", settings)
    for file in folder.rglob("*.jpg"):
        file.chmod(0o600)
    assert "nothing new" in append_dataset(folder, tmp_path / "a.beton", settings).notes[0]
    later = time.time() + 60
    os.utime(manifest_path(tmp_path / "a.beton"), (later, later))
    monkeypatch.setattr(replaced, "is_same", lambda *arguments: pytest.fail("read"))
    append_dataset(folder, tmp_path / "a.beton", settings)  # none is later than the manifest: none is read


def test_a_replaced_shard_of_the_source_is_noticed(folder: Path, tmp_path: Path) -> None:
    convert_dataset(folder, tmp_path / "s", Settings(format="shards"))
    manifest_path(tmp_path / "s").unlink()
    convert_dataset(tmp_path / "s", tmp_path / "a.beton")
    shard = tmp_path / "s/shard-000000.tar"
    content = bytearray(shard.read_bytes())
    at = content.index(b"\xff\xda")
    content[at + 40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"1 file of .* was replaced"):
        append_dataset(tmp_path / "s", tmp_path / "a.beton")


@pytest.mark.parametrize("format", ["beton", "shards"])
def test_a_run_that_reads_is_not_disturbed(folder: Path, tmp_path: Path, format: str) -> None:
    """Its epochs are those of the data as they were when it opened them, whatever is added or taken meanwhile."""
    target, settings = tmp_path / ("a.beton" if format == "beton" else "a"), Settings(format=format)
    convert_dataset(folder, target, settings)
    plan = training(12)
    expected = [epoch_of(build_engine("native", open_source(target), plan, batch_size=4), Cursor(n, 0)) for n in (0, 1)]
    engine = build_engine("native", open_source(target), plan, batch_size=4, workers=2, prefetch=1)
    running = engine.batches(Cursor(0, 0))
    found = [next(running)]
    if format == "beton":
        shutil.rmtree(folder / "class2")
        for file in sorted((folder / "class0").iterdir()):  # the new file is shorter than the one that is read
            file.write_bytes(encoded(photo(1, 9, 9)))
    (folder / "class0/new.jpg").write_bytes(encoded(photo(5, 40, 40)))
    append_dataset(folder, target, settings, replaced="take")
    found += running
    for ours, same in zip((*found, *engine.batches(Cursor(1, 0))), (*expected[0], *expected[1]), strict=True):
        assert all(map(torch.equal, ours.groups, same.groups))
        assert torch.equal(ours.index_B, same.index_B)
    assert not engine.faults().total
    engine.close()
    assert len(open_source(target)) == 13


@pytest.mark.parametrize("format", ["beton", "shards"])
@pytest.mark.parametrize("moment", [0, 1])
def test_what_is_half_in_its_place_is_not_opened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, moment: int
) -> None:
    target, settings = tmp_path / ("a.beton" if format == "beton" else "a"), Settings(format=format)
    convert_dataset(folder, target, settings)
    (folder / "class0/new.jpg").write_bytes(encoded(photo(5, 40, 40)))
    move, moves = os.replace, 0

    def moved(source: str | Path, place: str | Path) -> None:
        nonlocal moves
        if Path(place).parent == target or Path(place) in (target, manifest_path(target)):
            moves += 1
            if moves > moment:
                raise KeyboardInterrupt
        move(source, place)

    with monkeypatch.context() as patched:
        patched.setattr(workspaces.os, "replace", moved)
        with pytest.raises(KeyboardInterrupt):
            append_dataset(folder, target, settings)
    with pytest.raises(UserError, match="is being added to at this moment: wait for convert --append"):
        open_source(target)
    append_dataset(folder, target, settings)
    assert len(open_source(target)) == 13
