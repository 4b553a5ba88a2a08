"""The native engine equals PIL, whatever its workers, and a damaged file costs one sample, never a wrong pixel."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from images import encoded, photo
from reference_engine import reference_crops

from fastvicreg.contracts import Crops, Cursor, Engine, Fault, Plan
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.engines.batching import Batching
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.formats.folder.source import FolderSource
from fastvicreg.pipelines.plan import eval_plan, train_plan
from fastvicreg.pipelines.recipes import named_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """JPEG (all kinds) and PNG, from 1 pixel to larger than the crop."""
    sizes = [(60, 45), (45, 60), (33, 90), (200, 31), (1, 1), (7, 5), (300, 1), (97, 97), (250, 180), (64, 64)]
    for number, (width, height) in enumerate(sizes):
        image = photo(number, width, height)
        (tmp_path / f"{number:02d}.jpg").write_bytes(encoded(image, quality=90, progressive=number % 3 == 0))
        (tmp_path / f"{number:02d}.png").write_bytes(encoded(image.convert("RGBA" if number % 2 else "L"), "PNG"))
    return tmp_path


def training(samples: int, size: int = 32, seed: int = 3) -> Plan:
    return train_plan(samples, seed=seed, recipe=named_recipe("official"), image_size=size)


def epoch_of(engine: Engine, start: Cursor) -> list[Crops]:
    try:
        return list(engine.batches(start))
    finally:
        engine.close()


@pytest.mark.parametrize("size", [17, 48])
def test_crops_equal_pils_on_every_kind_of_file(folder: Path, size: int) -> None:
    source = open_source(folder)
    plan = training(len(source), size)
    for crops in epoch_of(build_engine("native", source, plan, batch_size=5, workers=2), Cursor(1, 0)):
        np.testing.assert_array_equal(crops.crops_BVHWC.numpy(), reference_crops(source, plan, 1, crops.slot_B))
        assert torch.equal(crops.slot_B, crops.index_B)
        assert not crops.fault_B.any()


def test_evaluation_equals_resize_then_centre_crop(folder: Path) -> None:
    source = open_source(folder)
    plan = eval_plan(len(source), resize=36, crop=32)
    batches = epoch_of(build_engine("native", source, plan, batch_size=8), Cursor(0, 0))
    assert [len(crops.slot_B) for crops in batches] == [8, 8, 4]
    assert torch.cat([crops.slot_B for crops in batches]).tolist() == list(range(20))
    for crops in batches:
        expected = reference_crops(source, plan, 0, crops.slot_B)
        # Of a strip 300 x 1, resized to 10800 x 36, only the centre is read: equal there too.
        np.testing.assert_array_equal(crops.crops_BVHWC.numpy(), expected)


def test_workers_prefetch_and_chunks_change_nothing(folder: Path) -> None:
    source = open_source(folder)
    plan = training(len(source))
    wanted = None
    for workers, prefetch in ((1, 1), (2, 3), (5, 9)):
        engine = build_engine("native", source, plan, batch_size=6, workers=workers, prefetch=prefetch)
        got = torch.stack([crops.crops_BVHWC for crops in epoch_of(engine, Cursor(0, 0))])
        wanted = got if wanted is None else wanted
        assert torch.equal(got, wanted)


def test_a_start_in_the_middle_gives_the_rest_of_the_epoch(folder: Path) -> None:
    source = open_source(folder)
    plan = training(len(source))
    whole = epoch_of(build_engine("native", source, plan, batch_size=4), Cursor(2, 0))
    rest = epoch_of(build_engine("native", source, plan, batch_size=4), Cursor(2, 3))
    assert [crops.cursor for crops in rest] == [Cursor(2, 3), Cursor(2, 4)]
    for left, right in zip(whole[3:], rest, strict=True):
        assert torch.equal(left.crops_BVHWC, right.crops_BVHWC)
        assert torch.equal(left.slot_B, right.slot_B)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_a_batch_in_order(folder: Path, world_size: int) -> None:
    source = open_source(folder)
    plan = training(len(source))
    whole = epoch_of(build_engine("native", source, plan, batch_size=8), Cursor(0, 0))
    parts = [
        epoch_of(build_engine("native", source, plan, batch_size=8, rank=rank, world_size=world_size), Cursor(0, 0))
        for rank in range(world_size)
    ]
    for batch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(batch.crops_BVHWC, torch.cat([share.crops_BVHWC for share in shares]))


def test_a_damaged_file_is_replaced_by_its_neighbour_counted_and_named(folder: Path) -> None:
    (folder / "03.jpg").write_bytes(b"\xff\xd8\xff broken")
    (folder / "05.png").unlink()
    (folder / "05.png").symlink_to(folder / "gone")  # a dangling link is no image file at all
    (folder / "07.png").unlink()
    (folder / "07.png").mkdir()  # nor is a folder
    source = open_source(folder)
    names = [source.name(i) for i in range(len(source))]
    assert "05.png" not in names
    broken = names.index("03.jpg")
    shutil.rmtree(folder / "07.png")
    plan = training(len(source))
    engine = build_engine("native", source, plan, batch_size=6, workers=2)
    batches = epoch_of(engine, Cursor(0, 0))
    assert engine.faults().counts == {"undecodable": 1}
    seen = 0
    for crops in batches:
        for at, (slot, index) in enumerate(zip(crops.slot_B.tolist(), crops.index_B.tolist(), strict=True)):
            if slot == broken:
                seen += 1
                assert index == broken + 1
                assert crops.fault_B[at] == Fault.UNDECODABLE
            else:
                assert index == slot
                assert crops.fault_B[at] == Fault.NONE
        repeated = reference_crops_of_delivered(source, plan, crops)
        np.testing.assert_array_equal(crops.crops_BVHWC.numpy(), repeated)
    assert seen == 1
    assert "03.jpg" in engine.faults().named[0]


def reference_crops_of_delivered(source, plan: Plan, crops: Crops) -> np.ndarray:
    """The neighbour's pixels under the asked sample's crop."""

    class Moved:
        views, support, sizes = plan.views, plan.support, plan.sizes

        def __init__(self, slot: int) -> None:
            self.slot = slot

        def boxes(self, epoch: int, index_B: torch.Tensor, wh_B2: torch.Tensor):
            return plan.boxes(epoch, torch.tensor([self.slot]), wh_B2)

    pairs = zip(crops.slot_B.tolist(), crops.index_B.tolist(), strict=True)
    one_by_one = [
        reference_crops(source, Moved(slot), crops.cursor.epoch, torch.tensor([i]))  # type: ignore[arg-type]
        for slot, i in pairs
    ]
    return np.concatenate(one_by_one)


def test_a_file_that_vanishes_is_unreadable(folder: Path) -> None:
    source = open_source(folder)
    (folder / "04.jpg").unlink()
    engine = build_engine("native", source, training(len(source)), batch_size=10)
    epoch_of(engine, Cursor(0, 0))
    assert engine.faults().counts == {"unreadable": 1}


def test_above_the_budget_the_run_stops_and_names_a_file(folder: Path) -> None:
    for number in range(4):
        (folder / f"0{number}.jpg").write_bytes(b"nothing")
    source = open_source(folder)
    plan = training(len(source))
    within = build_engine("native", source, plan, batch_size=20, budget=FaultBudget(count=4, share=0.0))
    epoch_of(within, Cursor(0, 0))
    share = build_engine("native", source, plan, batch_size=20, budget=FaultBudget(count=0, share=0.2))
    epoch_of(share, Cursor(0, 0))
    over = build_engine("native", source, plan, batch_size=20, budget=FaultBudget(count=3, share=0.1))
    with pytest.raises(UserError, match=r"4 of the 20 samples .*0\d\.jpg"):
        epoch_of(over, Cursor(0, 0))


def test_nothing_readable_ends_in_one_line(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"nothing")
    source = open_source(tmp_path)
    engine = build_engine("native", source, training(4), batch_size=4)
    with pytest.raises(UserError, match=r"neither \d\.jpg .* can be read"):
        epoch_of(engine, Cursor(0, 0))


def test_memory_is_bounded_by_prefetch(folder: Path) -> None:
    source = Announced(folder)
    engine = build_engine("native", source, training(len(source)), batch_size=2, prefetch=2)
    batches = engine.batches(Cursor(0, 0))
    next(batches)
    assert len(source.announced) == 3
    next(batches)
    assert len(source.announced) == 4
    engine.close()


class Announced(FolderSource):
    """Keeps the batches that it is told will be read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.announced: list[torch.Tensor] = []

    def read_ahead(self, index_B: torch.Tensor) -> None:
        self.announced.append(index_B)


def test_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"--batch-size 11 is larger than the data's 10 images"):
        Batching(10, 11, drop_last=True)
    with pytest.raises(UserError, match=r"--batch-size 6, .* 4 processes"):
        Batching(10, 6, drop_last=True, world_size=4)
    with pytest.raises(UserError, match=r"--batch-size 0 is no batch: give 1 or more"):
        Batching(10, 0, drop_last=True)
    for rank, world_size in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match=rf"rank {rank} is none of {world_size} processes"):
            Batching(10, 4, drop_last=True, rank=rank, world_size=world_size)
    assert Batching(10, 4, drop_last=True).batches_per_epoch == 2
    assert Batching(10, 4, drop_last=False).batches_per_epoch == 3


def test_an_unknown_pipeline_names_the_nearest(folder: Path) -> None:
    source = open_source(folder)
    with pytest.raises(UserError, match="did you mean 'native'"):
        build_engine("natve", source, training(len(source)), batch_size=2)


def test_synthetic_follows_order_and_labels(make_folder) -> None:
    source = open_source(make_folder(train=12, val=0))
    plan = training(len(source))
    real = epoch_of(build_engine("native", source, plan, batch_size=4), Cursor(0, 0))
    made = epoch_of(build_engine("synthetic", source, plan, batch_size=4), Cursor(0, 0))
    for left, right in zip(real, made, strict=True):
        assert torch.equal(left.slot_B, right.slot_B)
        assert torch.equal(left.label_B, right.label_B)
        assert left.crops_BVHWC.shape == right.crops_BVHWC.shape
    assert made[0].crops_BVHWC.float().std() > 50
