"""The dali engine delivers native's samples, boxes and flips, its pixels within a stated mean."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import encoded, photo
from near_native import GPU_MEAN, assert_as_native, assert_near, needs_dali
from PIL import Image
from stored import damage, epoch_of, training, unchecked

from fastvicreg.contracts import Cursor, Plan, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.engines.dali_samples import Request, Samples
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.plan import eval_plan
from fastvicreg.pipelines.sources.subset import SubsetSource


@needs_dali
@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 3), (3, 9)])
@pytest.mark.parametrize("checked", [True, False])
def test_every_worker_count_is_near_native(beton: Path, workers: int, prefetch: int, checked: bool) -> None:
    source = open_source(beton if checked else unchecked(beton))
    options = {"batch_size": 5, "workers": workers, "prefetch": prefetch}
    assert assert_as_native(source, training(len(source), 32 + workers), Cursor(1, 0), **options) == {}


@needs_dali
def test_shards_are_read_too(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    convert_dataset(folder, target, Settings(format="dali"))
    source = open_source(target)
    assert assert_as_native(source, training(len(source)), Cursor(0, 0), batch_size=5) == {}


@needs_dali
@pytest.mark.parametrize("checked", [True, False])
def test_samples_stored_as_pixels_are_read_too(folder: Path, tmp_path: Path, checked: bool) -> None:
    target = tmp_path / "mixed.beton"
    convert_dataset(folder, target, Settings(proportion=0.5))
    source = BetonSource(target if checked else unchecked(target))
    assert len({source.is_raw(i) for i in range(len(source))}) == 2
    assert assert_as_native(source, training(len(source)), Cursor(0, 0), batch_size=6) == {}


@needs_dali
def test_boxes_and_flips_are_the_plans(beton: Path) -> None:
    source = BetonSource(beton)
    plan = training(len(source))
    slot_B = plan.order(4)
    job = Samples(source, plan).job(Cursor(4, 0), slot_B)
    wh_B2 = torch.tensor([source.size(slot) for slot in slot_B.tolist()])
    box_BV4, flip_BV = plan.boxes(4, slot_B, wh_B2)
    assert job.place_P.tolist() == list(range(len(source)))
    found_BV4 = np.concatenate([job.request.start_PV2[..., ::-1], job.request.size_PV2[..., ::-1]], -1)
    assert np.array_equal(found_BV4, box_BV4.numpy())
    assert np.array_equal(job.request.flip_PV, flip_BV.numpy())


@needs_dali
def test_a_view_is_cut_at_its_box_to_the_pixel() -> None:
    """Boxes of the view's own size need no resize, and pixels stored as they are no decoder."""
    from fastvicreg.pipelines.engines.dali_graph import Graph, Shape

    rng, side = np.random.default_rng(0), 9
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((9, 9), (9, 40), (33, 9), (25, 31), (64, 10))]
    start_PV2 = np.array(
        [[[rng.integers(0, n - side + 1) for n in i.shape[:2]] for _ in "ab"] for i in images], np.int32
    )
    flip_PV = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0]], np.int32)
    ppm = [np.frombuffer(b"P6\n%d %d\n255\n%b" % (i.shape[1], i.shape[0], i.tobytes()), np.uint8) for i in images]
    graph = Graph(Shape(batch=5, sides=(side, side), threads=2, depth=2))
    graph.submit(Request(ppm, start_PV2, np.full_like(start_PV2, side), flip_PV))
    for v, view_PHWC in enumerate(graph.take()):
        for image, (y, x), flip, found in zip(images, start_PV2[:, v], flip_PV[:, v], view_PHWC, strict=True):
            cut = image[y : y + side, x : x + side]
            assert np.array_equal(found.numpy(), cut[:, ::-1] if flip else cut)


@needs_dali
@pytest.mark.parametrize("checked", [True, False])
def test_an_exif_orientation_is_not_applied(tmp_path: Path, checked: bool) -> None:
    root = tmp_path / "turned"
    root.mkdir()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        (root / f"{orientation}.jpg").write_bytes(encoded(photo(orientation, 90, 50), quality=90, exif=exif))
    target = tmp_path / "turned.beton"
    convert_dataset(root, target)
    source = BetonSource(target if checked else unchecked(target))
    assert b"Exif" in bytes(source.stored(5))
    assert assert_as_native(source, training(8), Cursor(0, 0), batch_size=8) == {}


@needs_dali
def test_a_start_in_the_middle_gives_the_rest_of_the_epoch(beton: Path) -> None:
    source = open_source(beton)
    assert_as_native(source, training(len(source)), Cursor(2, 3), batch_size=4)


@needs_dali
def test_ranks_share_a_batch_in_order(beton: Path) -> None:
    source = open_source(beton)
    for rank in range(4):
        assert_as_native(source, training(len(source)), Cursor(0, 0), batch_size=8, rank=rank, world_size=4)


@needs_dali
def test_epochs_follow_one_another_and_may_be_left_early(beton: Path) -> None:
    source = open_source(beton)
    plan = training(len(source))
    dali, native = (build_engine(name, source, plan, batch_size=4, workers=2) for name in ("dali", "native"))
    left = dali.batches(Cursor(0, 0))
    kept = [next(left), next(left)]
    copies = [crops.crops_BVHWC.clone() for crops in kept]
    for epoch in (0, 1):  # the generator of the first epoch is still open
        assert_near(list(dali.batches(Cursor(epoch, 0))), list(native.batches(Cursor(epoch, 0))))
    for crops, copy in zip(kept, copies, strict=True):
        assert torch.equal(crops.crops_BVHWC, copy)  # a delivered batch is not DALI's reused memory
    dali.close()
    native.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "fastvicreg-dali"]


@needs_dali
def test_what_dali_cannot_do_is_refused_in_one_line(beton: Path, folder: Path) -> None:
    source = open_source(beton)
    plan = training(len(source))
    refused: list[tuple[str, Source, Plan, dict[str, Any]]] = [
        (r"folder of images: .*convert it once .*fastvicreg convert .* --format shards", open_source(folder), plan, {}),
        ("not a part of a dataset", SubsetSource(source, range(len(source))), plan, {}),
        ("evaluate with --pipeline native", source, eval_plan(len(source), resize=36, crop=32), {}),
        ("--kernel resample=numba", source, plan, {"resample": "numba"}),
        ("--decoder fast is not known", source, plan, {"decoder": "fast"}),
    ]
    if not torch.cuda.is_available():
        refused += [
            ("finds no CUDA device here: give --decoder cpu", source, plan, {"decoder": "mixed"}),
            ("finds no CUDA device here", source, plan, {"device": "cuda"}),
        ]
    for message, data, chosen, options in refused:
        with pytest.raises(UserError, match=message) as caught:
            build_engine("dali", data, chosen, batch_size=4, **options)
        assert "\n" not in str(caught.value)


def test_without_dali_one_line_says_how_to_get_it(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fastvicreg.pipelines.engines.dali_graph", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    source = open_source(beton)
    with pytest.raises(UserError, match="pip install nvidia-dali-cuda130") as caught:
        build_engine("dali", source, training(len(source)), batch_size=4)
    assert "\n" not in str(caught.value)


@needs_dali
def test_the_peer_delivers_every_image_once_a_pass(beton: Path) -> None:
    from fastvicreg.profiles.bench.peers_dali import own_reader_pass

    source = open_source(beton)
    one_pass = own_reader_pass(source, 32, 5, 2)
    assert [one_pass(), one_pass()] == [len(source) // 5 * 5] * 2


@needs_dali
@pytest.mark.gpu
def test_the_gpu_decodes_the_same_views(beton: Path) -> None:
    damage(beton, 6, 0.5, bytes(64))
    source = open_source(beton)
    options: dict[str, Any] = {"batch_size": 5, "workers": 2}
    native = epoch_of(build_engine("native", source, training(len(source), 64), **options), Cursor(0, 0))
    for load in (0.0, 0.65, 1.0):
        dali = build_engine("dali", source, training(len(source), 64), device="cuda", hw_decoder_load=load, **options)
        batches = []
        for crops in dali.batches(Cursor(0, 0)):
            assert crops.crops_BVHWC.is_cuda
            batches.append(crops)
        assert_near(batches, native, GPU_MEAN)
        assert dali.faults().counts == {"changed": 1}
        dali.close()


@needs_dali
@pytest.mark.gpu
def test_a_batch_on_the_gpu_outlives_what_its_consumer_has_queued(beton: Path) -> None:
    source = open_source(beton)
    plan = training(len(source), 64)
    dali = build_engine("dali", source, plan, batch_size=4, device="cuda", prefetch=1)
    sums, expected = [], []
    for crops in dali.batches(Cursor(0, 0)):
        expected.append(crops.crops_BVHWC.cpu().long().sum())
        torch.cuda._sleep(100_000_000)  # the consumer's stream reads the batch long after the host has let go of it
        sums.append(crops.crops_BVHWC.long().sum())
    assert [int(total) for total in sums] == [int(total) for total in expected]
    dali.close()
