"""What a run reads is not added to, and what is being added to is not read: the second is refused, whoever it is."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from images import encoded, photo
from runs import tiny, train

from fastvicreg import datasets
from fastvicreg.cli import main
from fastvicreg.datasets import open_data
from fastvicreg.errors import UserError
from fastvicreg.pipelines import ViewLoader, loader
from fastvicreg.pipelines.convert import Settings, append_dataset, convert_dataset
from fastvicreg.pipelines.convert import append as appending
from fastvicreg.pipelines.manifest import manifest_path, read_manifest
from fastvicreg.pipelines.reading import Reading, unread
from fastvicreg.train import trainer


@pytest.fixture(params=["beton", "shards"])
def data(request: pytest.FixtureRequest, make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """12 images, converted; the folder they came from has one more since."""
    source = make_folder(train=12, val=0)
    target = tmp_path / ("a.beton" if request.param == "beton" else "a")
    convert_dataset(source, target, Settings(format=request.param))
    (source / "class0/new.jpg").write_bytes(encoded(photo(99, 40, 40)))
    source.rename(tmp_path / "source")
    return target


def grows(data: Path) -> bool:
    """Whether the new image can be added to ``data``."""
    before = len(read_manifest(manifest_path(data)))
    append_dataset(data.parent / "source", data, Settings(format="beton" if data.suffix else "shards"))
    return len(read_manifest(manifest_path(data))) == before + 1


def everything(data: Path) -> tuple[bytes, list[Path]]:
    return manifest_path(data).read_bytes(), sorted(data.parent.iterdir())


def refused(data: Path, who: str) -> None:
    """An addition says that ``who`` reads ``data``, and leaves everything as it was."""
    before = everything(data)
    with pytest.raises(UserError, match=f"{data} is being read by {who}: wait for its end, or convert to another name"):
        grows(data)
    assert everything(data) == before


def test_what_several_read_is_not_added_to(data: Path) -> None:
    first, second = Reading(data), Reading(data, data.parent / "nothing", "s3://bucket/data")
    first.close()
    refused(data, f"process {os.getpid()}")
    second.close()
    assert grows(data)


def test_shards_named_by_a_pattern_are_held(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source, target = make_folder(train=12, val=0), tmp_path / "shards"
    convert_dataset(source, target, Settings(format="shards"))
    (source / "class0/new.jpg").write_bytes(encoded(photo(99, 40, 40)))
    source.rename(tmp_path / "source")
    config = tiny(target, steps=1)
    held = open_data(replace(config, data=replace(config.data, data=str(target / "*.tar"))))
    refused(target, f"process {os.getpid()}")
    held.close()
    Reading(tmp_path / "none-*.tar").close()
    assert grows(target)


def test_a_process_that_was_killed_reads_no_more(data: Path) -> None:
    code = (
        "import sys; from fastvicreg.pipelines.reading import Reading\n"
        "held = Reading(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        refused(data, f"process {reader.pid}")
        reader.kill()
    assert grows(data)


def test_what_is_being_added_to_is_not_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    class Watched(appending.Conversion):
        def run(self, *arguments: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            with pytest.raises(UserError, match="is being added to at this moment: wait for convert --append") as error:
                Reading(data)
            told.append(error)
            super().run(*arguments)

    monkeypatch.setattr(appending, "Conversion", Watched)
    assert grows(data)
    assert told
    Reading(data).close()


def test_a_run_holds_its_data_to_its_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signals, tried = trainer.stop_signals, []

    @contextmanager
    def while_it_trains() -> Iterator[list[int]]:
        command = ["convert", str(tmp_path / "source"), str(data), "--append"]
        tried.append(main(command if data.suffix else [*command, "--format", "shards"]))
        with signals() as stopped:
            yield stopped

    monkeypatch.setattr(trainer, "stop_signals", while_it_trains)
    train(tiny(data, steps=1), tmp_path / "run")
    assert tried == [2]
    assert f"{data} is being read by process {os.getpid()}: wait for its end" in capsys.readouterr().err
    assert grows(data)


def locks_of(data: Path) -> list[str]:
    """This process's open handles of manifests at ``data`` or beside it."""
    handles = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [place for one in handles if os.path.lexists(one) and (place := os.readlink(one)).endswith(".manifest")]


def try_to_add_as_it_opens(data: Path, module: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What an addition is told that begins as soon as ``module`` has opened the data; empty until it does."""
    really, told = module.open_source, []

    def opened(*arguments: Any, **named: Any) -> Any:
        source = really(*arguments, **named)
        with pytest.raises(UserError, match="is being read by process") as error:
            grows(data)
        told.append(str(error.value))
        return source

    monkeypatch.setattr(module, "open_source", opened)
    return told


def test_nothing_is_added_between_a_runs_index_and_its_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        told = try_to_add_as_it_opens(data, datasets, patch)
        train(tiny(data, steps=1), tmp_path / "run")
        assert len(told) == 1
    assert not locks_of(data)
    assert grows(data)


def test_nothing_is_added_between_a_loaders_index_and_its_first_batch(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        told = try_to_add_as_it_opens(data, loader, patch)
        with ViewLoader(data, batch_size=4, image_size=32, recipe="small"):
            assert len(told) == 1
    assert not locks_of(data)
    assert grows(data)


def test_what_is_being_added_to_is_not_opened_by_a_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(datasets, "open_source", lambda *_, **__: read.append(True))
    with unread(data), pytest.raises(UserError, match="is being added to at this moment"):
        train(tiny(data, steps=1), tmp_path / "run")
    assert not read
    assert not locks_of(data)


def test_a_run_that_does_not_begin_lets_its_data_go(data: Path, tmp_path: Path) -> None:
    config, folder = tiny(data, steps=1), tmp_path / "run"
    none = str(tmp_path / "none")
    other = tmp_path / "other"
    other.write_text("a file")
    for refused_, where in (
        (replace(config, data=replace(config.data, val_data=none)), folder),  # the training data are open
        (replace(config, data=replace(config.data, val_labels=none)), folder),
        (replace(config, run=replace(config.run, batch_size=400)), folder),  # by the engine
        (config, other),  # by the folder, when all is assembled
    ):
        with pytest.raises(UserError) as error:
            train(refused_, where)
        assert not locks_of(data), error.value
    with pytest.raises(UserError, match="recipe"):
        ViewLoader(data, batch_size=4, recipe="none")
    with pytest.raises(RuntimeError, match=r"(?i)device"):
        ViewLoader(data, batch_size=4, image_size=32, recipe="small", device="no device")
    assert not locks_of(data)
    assert grows(data)


def test_data_opened_by_themselves_are_held_until_nobody_has_them(data: Path) -> None:
    found = open_data(tiny(data))
    refused(data, f"process {os.getpid()}")
    source = found.train
    del found
    assert not locks_of(data)
    assert len(source) == 12
    assert grows(data)


def test_a_loader_holds_its_data_until_it_is_closed(data: Path) -> None:
    with ViewLoader(data, batch_size=4, image_size=32, recipe="small"):
        refused(data, f"process {os.getpid()}")
    with pytest.raises(UserError, match="batch"):
        ViewLoader(data, batch_size=400, image_size=32, recipe="small")
    assert grows(data)


def test_what_nobody_has_any_more_is_let_go(data: Path) -> None:
    ViewLoader(data, batch_size=4, image_size=32, recipe="small")
    Reading(data)
    gc.collect()
    assert grows(data)


def test_a_manifest_that_is_replaced_as_it_is_opened_is_held_all_the_same(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, replaced = os.open, []

    def late(path: Any, *arguments: Any, **named: Any) -> int:
        handle = really(path, *arguments, **named)
        if path == manifest_path(data) and not replaced:
            replaced.append(path)
            draft = data.parent / "draft"
            draft.write_bytes(path.read_bytes())
            os.replace(draft, path)
        return handle

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", late)
        reading = Reading(data)
    assert replaced
    refused(data, f"process {os.getpid()}")
    reading.close()


def test_of_two_additions_at_once_the_second_loses_nothing_of_the_first(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, first = appending.opened, []

    def after_another(*arguments: Any) -> Any:
        if not first:
            first.append(True)
            assert grows(data)
        return opened(*arguments)

    monkeypatch.setattr(appending, "opened", after_another)
    with pytest.raises(UserError, match="was added to by another command meanwhile: run the same again"):
        grows(data)
    after = len(read_manifest(manifest_path(data)))
    assert after == 13
    assert not grows(data)
    assert len(read_manifest(manifest_path(data))) == after
