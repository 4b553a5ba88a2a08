"""The ffcv engine delivers what the native engine does, bit for bit, also where a file is damaged; it always ends."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import encoded, photo
from PIL import Image
from stored import epoch_of, training, unchecked

from fastvicreg.contracts import Crops, Cursor, Fault, Plan, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.formats.beton.layout import DESCRIPTOR, HEADER, read_layout
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.plan import eval_plan
from fastvicreg.stalls import StalledError

needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed: make ffcv")
VICTIM = 6


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def place_of(source: BetonSource, sample: int) -> tuple[int, int]:
    """(offset, bytes) of a sample in its file."""
    return int(source.layout.image_N["data_ptr"][sample]), len(source.stored(sample))


def assert_same(left: list[Crops], right: list[Crops]) -> None:
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.cursor == b.cursor
        for field in ("slot_B", "index_B", "label_B", "fault_B"):
            assert torch.equal(getattr(a, field), getattr(b, field)), (a.cursor, field)
        assert len(a.groups) == len(b.groups)
        for x, y in zip(a.groups, b.groups, strict=True):
            assert torch.equal(x, y), a.cursor


def assert_as_native(source: Source, plan: Plan, start: Cursor, **options: Any) -> dict[str, int]:
    """Both engines' epochs are equal in all they deliver and report; returns the faults."""
    workers = options.pop("workers", 2)
    native, ffcv = (build_engine(name, source, plan, workers=workers, **options) for name in ("native", "ffcv"))
    assert_same(epoch_of(ffcv, start), epoch_of(native, start))
    assert ffcv.faults() == native.faults()
    return ffcv.faults().counts


@needs_ffcv
@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 3), (3, 2), (7, 5)])
def test_every_worker_count_equals_native(beton: Path, workers: int, prefetch: int) -> None:
    source = open_source(beton)
    assert {source.label(i) for i in range(len(source))} == {0, 1}
    options = {"batch_size": 5, "workers": workers, "prefetch": prefetch}
    assert assert_as_native(source, training(len(source), 17 + 2 * workers), Cursor(1, 0), **options) == {}


@needs_ffcv
def test_raw_samples_equal_native(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "mixed.beton"
    convert_dataset(folder, target, Settings(proportion=0.5))
    source = BetonSource(target)
    assert len({source.is_raw(i) for i in range(len(source))}) == 2
    assert assert_as_native(source, training(len(source)), Cursor(0, 0), batch_size=6) == {}


@needs_ffcv
def test_a_start_in_the_middle_gives_the_rest_of_the_epoch(beton: Path) -> None:
    source = open_source(beton)
    assert_as_native(source, training(len(source)), Cursor(2, 3), batch_size=4)


@pytest.mark.slow
@needs_ffcv
def test_ranks_share_a_batch_in_order(beton: Path) -> None:
    source = open_source(beton)
    for rank in range(4):
        assert_as_native(source, training(len(source)), Cursor(0, 0), batch_size=8, rank=rank, world_size=4, workers=3)


@needs_ffcv
@pytest.mark.parametrize("workers", [1, 3, 9])
def test_evaluation_equals_native_down_to_the_last_partial_batch(beton: Path, workers: int) -> None:
    source = open_source(beton)
    plan = eval_plan(len(source), resize=36, crop=32)
    assert len(source) % 8 == 6
    assert_as_native(source, plan, Cursor(0, 0), batch_size=8, workers=workers)


@needs_ffcv
def test_epochs_follow_one_another_and_may_be_left_early(beton: Path) -> None:
    source = open_source(beton)
    plan = training(len(source))
    ffcv, native = (build_engine(name, source, plan, batch_size=4, workers=2) for name in ("ffcv", "native"))
    left = ffcv.batches(Cursor(0, 0))
    kept = [next(left), next(left)]
    copies = [crops.crops_BVHWC.clone() for crops in kept]
    for epoch in (0, 1):  # the generator of the first epoch is still open
        assert_same(list(ffcv.batches(Cursor(epoch, 0))), list(native.batches(Cursor(epoch, 0))))
    for crops, copy in zip(kept, copies, strict=True):
        assert torch.equal(crops.crops_BVHWC, copy)  # a delivered batch is not FFCV's reused memory
    ffcv.close()
    native.close()
    assert not [thread for thread in threading.enumerate() if type(thread).__name__ == "Worker"]


@needs_ffcv
def test_a_damaged_jpeg_is_replaced_as_native_does(beton: Path) -> None:
    source = BetonSource(unchecked(beton))
    offset, size = place_of(source, VICTIM)
    overwrite(beton, offset + size // 2, bytes(size - size // 2))
    assert assert_as_native(source, training(len(source)), Cursor(0, 0), batch_size=6) == {"undecodable": 1}


@needs_ffcv
def test_one_changed_bit_is_found_where_there_is_a_manifest(beton: Path) -> None:
    source = BetonSource(beton)
    offset, size = place_of(source, VICTIM)
    overwrite(beton, offset + size - 20, bytes([source.stored(VICTIM)[size - 20] ^ 1]))
    plan = training(len(source))
    assert assert_as_native(source, plan, Cursor(0, 0), batch_size=6, workers=1) == {"changed": 1}
    (crops,) = epoch_of(build_engine("ffcv", source, plan, batch_size=len(source)), Cursor(0, 0))
    (at,) = np.flatnonzero(crops.fault_B.numpy()).tolist()
    assert crops.slot_B[at] == VICTIM
    assert crops.index_B[at] == VICTIM + 1
    assert crops.fault_B[at] == Fault.CHANGED


@needs_ffcv
def test_a_size_in_the_metadata_that_is_not_the_jpegs_changes_no_pixel(beton: Path) -> None:
    layout = read_layout(unchecked(beton))
    row = HEADER.itemsize + len(layout.fields) * DESCRIPTOR.itemsize + VICTIM * layout.metadata_N.itemsize
    width = int(layout.image_N["width"][VICTIM])
    for wrong in (width // 2, 2 * width):  # half: libturbojpeg would scale
        overwrite(beton, row + 1, wrong.to_bytes(2, "little"))
        source = BetonSource(beton)
        assert source.size(VICTIM)[0] == wrong
        assert assert_as_native(source, training(len(source)), Cursor(0, 0), batch_size=6) == {}


@needs_ffcv
def test_a_cmyk_jpeg_in_the_file_is_left_to_pillow(folder: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (folder / "a" / "00.jpg").write_bytes(encoded(Image.fromarray(noise), quality=95))
    target = tmp_path / "cmyk.beton"
    convert_dataset(folder, target)
    source = BetonSource(unchecked(target))
    offset, size = place_of(source, 0)
    cmyk = encoded(photo(5, 64, 64).convert("CMYK"), quality=50)
    assert len(cmyk) <= size
    overwrite(target, offset, cmyk)
    assert assert_as_native(source, training(len(source)), Cursor(0, 0), batch_size=6) == {}


CUT = """
import os, sys, time
from fastvicreg.contracts import Cursor
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe

path, cut, engine = sys.argv[1], int(sys.argv[2]), sys.argv[3]
source = open_source(path)
plan = train_plan(len(source), seed=3, recipe=named_recipe("official"), image_size=32)
engine = build_engine(engine, source, plan, batch_size=4, workers=2, budget=FaultBudget(count=99))
batches = engine.batches(Cursor(0, 0))
next(batches)
batches.close()
time.sleep(1)  # a thread in the midst of a sample that is cut off ends with the process: none is any more
os.truncate(path, cut)
print([crops.index_B.tolist() for crops in engine.batches(Cursor(1, 0))], engine.faults().counts)
"""


@pytest.mark.slow
@needs_ffcv
@pytest.mark.parametrize("checked", [True, False])
def test_a_file_that_is_cut_after_it_was_opened_costs_samples_and_not_the_process(
    folder: Path, tmp_path: Path, *, checked: bool
) -> None:
    said = []
    for engine in ("native", "ffcv"):
        target = tmp_path / f"{engine}.beton"
        convert_dataset(folder, target, Settings(raw=True))
        source = BetonSource(target if checked else unchecked(target))
        cut = place_of(source, len(source) // 2)[0] + 5
        line = (sys.executable, "-c", CUT, str(target), str(cut), engine)
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "'unreadable': 9" in said[1]  # 11 of the 22 are cut off, 9 of the 20 in whole batches


@needs_ffcv
def test_above_the_budget_the_run_stops(beton: Path) -> None:
    source = BetonSource(unchecked(beton))
    for sample in (2, 7, 11):
        overwrite(beton, place_of(source, sample)[0], b"nothing")
    engine = build_engine("ffcv", source, training(len(source)), batch_size=11, budget=FaultBudget(count=2, share=0.05))
    with pytest.raises(UserError, match=r"3 of the \d+ samples .*sample \d+"):
        epoch_of(engine, Cursor(0, 0))


@needs_ffcv
def test_a_thread_that_fails_ends_the_run_with_its_reason(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(beton)
    plan = training(len(source))
    original, calls = plan.boxes, []

    def fails_later(epoch: int, index_B: torch.Tensor, wh_B2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(index_B)
        if len(calls) > 4:
            raise OSError(5, "the disk is gone")
        return original(epoch, index_B, wh_B2)

    monkeypatch.setattr(plan, "boxes", fails_later)
    engine = build_engine("ffcv", source, plan, batch_size=4, workers=2)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        epoch_of(engine, Cursor(0, 0))


@needs_ffcv
def test_a_thread_that_gives_nothing_is_given_up(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(beton)
    plan = training(len(source))
    freed = threading.Event()
    monkeypatch.setattr(plan, "boxes", lambda epoch, index_B, wh_B2: freed.wait() and None)
    engine = build_engine("ffcv", source, plan, batch_size=4, workers=1, stall=0.1)
    try:
        with pytest.raises(StalledError, match="gave nothing for"):
            epoch_of(engine, Cursor(0, 0))
    finally:
        freed.set()
