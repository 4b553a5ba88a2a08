"""The dali engine delivers native's samples, boxes and flips, its pixels within a stated mean; damage ends nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import encoded, photo
from PIL import Image

from fastvicreg.contracts import Crops, Cursor, Engine, Fault, Plan, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.engines import dali_thread
from fastvicreg.pipelines.engines.dali_samples import Samples
from fastvicreg.pipelines.engines.dali_thread import Watched
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.manifest import manifest_path
from fastvicreg.pipelines.plan import eval_plan, train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.pipelines.sources.beton import BetonSource
from fastvicreg.pipelines.sources.subset import SubsetSource

HERE = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HERE, reason="DALI is not installed: pip install nvidia-dali-cuda130")

MEAN = 0.3
"""Of 255: mean difference from native's pixels where DALI decodes on the CPU; its cubic filter rounds otherwise."""
WORST = 2.0
"""The same of any one view: crops of a few pixels differ most; a wrong box or flip gives more than 10."""
GPU_MEAN = 1.0
"""The same where the GPU decodes, with jpeg_fancy_upsampling: its inverse DCT and upsampling round otherwise too."""

SIZES = [(60, 45), (45, 60), (33, 90), (200, 31), (1, 1), (7, 5), (300, 1), (97, 97), (250, 180), (64, 64)]
VICTIM = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of JPEGs of every subsampling, baseline and progressive, RGB and grey, from 1 pixel on; two PNGs."""
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        image = photo(number, width, height)
        kind = {"quality": 90, "progressive": number % 3 == 0, "subsampling": number % 3}
        (root / "a" / f"{number:02d}.jpg").write_bytes(encoded(image, **kind))
        (root / "b" / f"{number:02d}.jpg").write_bytes(encoded(image.convert("L"), quality=80))
    for number in (4, 9):
        (root / "b" / f"{number:02d}.png").write_bytes(encoded(photo(number, 40, 30), "PNG"))
    return root


@pytest.fixture
def beton(folder: Path, tmp_path: Path) -> Path:
    """The folder as a ``.beton`` with its manifest."""
    target = tmp_path / "images.beton"
    convert_dataset(folder, target)
    return target


def unchecked(beton: Path) -> Path:
    """The same file without its manifest."""
    manifest_path(beton).unlink()
    return beton


def damage(beton: Path, sample: int, at: float, data: bytes) -> None:
    """Overwrite a sample's bytes from the share ``at`` of its length on."""
    source = BetonSource(beton)
    start, size = int(source.layout.image_N["data_ptr"][sample]), len(source.stored(sample))
    with beton.open("r+b") as file:
        file.seek(start + int(at * size))
        file.write(data[: size - int(at * size)])


def training(samples: int, size: int = 32) -> Plan:
    return train_plan(samples, seed=3, recipe=named_recipe("official"), image_size=size)


def epoch_of(engine: Engine, start: Cursor) -> list[Crops]:
    try:
        return list(engine.batches(start))
    finally:
        engine.close()


def assert_near(left: list[Crops], right: list[Crops], mean: float = MEAN) -> None:
    """All but the pixels equal; pixels within ``mean``, those of each view within ``WORST``."""
    assert len(left) == len(right) > 0
    differences = []
    for a, b in zip(left, right, strict=True):
        assert a.cursor == b.cursor
        assert a.crops_BVHWC.shape == b.crops_BVHWC.shape
        for field in ("slot_B", "index_B", "label_B", "fault_B"):
            assert torch.equal(getattr(a, field), getattr(b, field)), (a.cursor, field)
        differences.append((a.crops_BVHWC.cpu().float() - b.crops_BVHWC.float()).abs().mean((2, 3, 4)))
    difference_NV = torch.cat(differences)
    assert difference_NV.mean() < mean, difference_NV.mean()
    assert difference_NV.max() < WORST, difference_NV.max()


def assert_as_native(source: Source, plan: Plan, start: Cursor, **options: Any) -> dict[str, int]:
    """Both engines deliver and report the same; returns the faults."""
    native, dali = (build_engine(name, source, plan, **options) for name in ("native", "dali"))
    assert_near(epoch_of(dali, start), epoch_of(native, start))
    assert dali.faults() == native.faults()
    assert dali.fault_log.named() == native.fault_log.named()  # type: ignore[attr-defined]
    return dict(dali.faults())


def run_apart(script: str, *arguments: object, seconds: float = 300) -> str:
    """``script`` in a process of its own, which must end well and in time; returns what it prints."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


PRELUDE = """
import sys
import torch
from fastvicreg.contracts import Cursor
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.engines import dali_samples, dali_thread
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe

source = open_source(sys.argv[1])
plan = train_plan(len(source), seed=3, recipe=named_recipe("official"), image_size=32)
dali, native = (build_engine(name, source, plan, batch_size=5, workers=2) for name in ("dali", "native"))
"""
COMPARE = """
for epoch in (0, 1):
    ours, theirs = (list(engine.batches(Cursor(epoch, 0))) for engine in (dali, native))
    for a, b in zip(ours, theirs, strict=True):
        for field in ("slot_B", "index_B", "label_B", "fault_B"):
            assert torch.equal(getattr(a, field), getattr(b, field)), (a.cursor, field)
        difference_B = (a.crops_BVHWC.float() - b.crops_BVHWC.float()).abs().mean((1, 2, 3, 4))
        assert difference_B.max() < 2, (a.cursor, difference_B)
    assert dali.faults() == native.faults()
    assert dali.fault_log.named() == native.fault_log.named()
print(dict(dali.faults()))
"""


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
def test_one_changed_bit_is_found_where_there_is_a_manifest(beton: Path) -> None:
    source = BetonSource(beton)
    damage(beton, VICTIM, 0.9, bytes([source.stored(VICTIM)[int(0.9 * len(source.stored(VICTIM)))] ^ 1]))
    plan = training(len(source))
    assert assert_as_native(source, plan, Cursor(0, 0), batch_size=6) == {"changed": 1}
    (crops,) = epoch_of(build_engine("dali", source, plan, batch_size=len(source)), Cursor(0, 0))
    (at,) = np.flatnonzero(crops.fault_B.numpy()).tolist()
    assert (crops.slot_B[at], crops.index_B[at], crops.fault_B[at]) == (VICTIM, VICTIM + 1, Fault.CHANGED)


@needs_dali
def test_bytes_that_are_no_jpeg_never_reach_dali(beton: Path) -> None:
    noise = np.random.default_rng(0).bytes(1 << 16)
    for sample, start in enumerate((b"nothing", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"")):
        damage(beton, sample, 0.0, start + noise)
    damage(beton, 7, 0.5, bytes(1 << 16))  # cut in half
    assert run_apart(COMPARE, unchecked(beton)).strip() == "{'undecodable': 5}"


@needs_dali
def test_a_batch_that_dali_refuses_is_begun_again_without_the_guilty(beton: Path) -> None:
    damage(beton, 7, 0.5, bytes(1 << 16))
    # Blinded, the header check lets a JPEG cut in half through, which ends DALI's pipeline.
    script = "dali_samples.plain_size = lambda encoded: tuple(map(int, dali_samples.simplejpeg.decode_jpeg_header("
    script += "encoded)[1::-1]))\n"
    assert run_apart(script + COMPARE, unchecked(beton)).strip() == "{'undecodable': 1}"


@needs_dali
def test_a_sample_that_dali_alone_refuses_is_delivered_all_the_same(beton: Path) -> None:
    script = """
    true_size = dali_samples.plain_size
    dali_samples.plain_size = lambda data: (5000, 5000) if bytes(data) == bytes(source.stored(9)) else true_size(data)
    """  # a box beyond the image: DALI refuses it, libjpeg-turbo finds nothing
    assert run_apart(textwrap.dedent(script) + COMPARE, unchecked(beton)).strip() == "{}"


@needs_dali
def test_a_failure_that_no_sample_explains_ends_the_run_with_its_reason(
    beton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvicreg.pipelines.engines import dali_graph

    source = open_source(beton)
    engine = build_engine("dali", source, training(len(source)), batch_size=4)

    original = dali_graph.Graph.take

    def fails(graph: dali_graph.Graph, stream: Any = None) -> list[torch.Tensor]:
        if len(graph._ahead[0].encoded_P) == 4:
            raise dali_graph.GraphError("out of memory")
        return original(graph, stream)

    monkeypatch.setattr(dali_graph.Graph, "take", fails)
    with pytest.raises(RuntimeError, match="no sample is at fault: out of memory; --pipeline native"):
        epoch_of(engine, Cursor(0, 0))


@needs_dali
def test_above_the_budget_the_run_stops(beton: Path) -> None:
    for sample in (2, 7, 11):
        damage(beton, sample, 0.0, b"nothing")
    source = BetonSource(unchecked(beton))
    engine = build_engine("dali", source, training(len(source)), batch_size=11, budget=FaultBudget(count=2, share=0.05))
    with pytest.raises(UserError, match=r"3 of the \d+ samples .*sample \d+"):
        epoch_of(engine, Cursor(0, 0))


@needs_dali
@pytest.mark.parametrize("leave", ["sys.exit(0)", "dali.close()", "del dali, batches", ""])
def test_the_process_ends_in_the_middle_of_an_epoch(beton: Path, leave: str) -> None:
    assert run_apart(f"batches = dali.batches(Cursor(0, 0))\nnext(batches)\nprint('one')\n{leave}", beton) == "one\n"


@needs_dali
def test_a_hang_inside_dali_is_given_up_and_the_process_ends(beton: Path) -> None:
    script = """
    import time
    from fastvicreg.pipelines.engines.dali_graph import Graph

    dali_thread.STALL = 1.0
    list(dali.batches(Cursor(0, 0)))
    Graph.take = lambda graph, stream: time.sleep(3600)
    try:
        list(dali.batches(Cursor(1, 0)))
    except RuntimeError as error:
        print(error)
    dali.close()
    """
    assert "gave nothing for 1 s" in run_apart(script, beton)


def test_what_the_thread_raises_is_raised_where_it_is_waited_for() -> None:
    def items():  # type: ignore[no-untyped-def]
        yield 1
        raise OSError(5, "the disk is gone")

    watched = Watched(items(), "test")
    assert next(watched) == 1
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(watched)
    assert watched.close()


def test_a_thread_that_gives_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_thread, "STALL", 0.1)
    freed = threading.Event()

    def items():  # type: ignore[no-untyped-def]
        yield freed.wait()

    watched = Watched(items(), "test")
    with pytest.raises(RuntimeError, match="gave nothing for"):
        next(watched)
    assert not watched.close()
    freed.set()
    assert watched.close()


@needs_dali
def test_what_dali_cannot_do_is_refused_in_one_line(beton: Path, folder: Path) -> None:
    source = open_source(beton)
    plan = training(len(source))
    refused: list[tuple[str, Source, Plan, dict[str, Any]]] = [
        (r"folder of images: convert it once .*fastvicreg convert .* --format dali", open_source(folder), plan, {}),
        ("not a SubsetSource", SubsetSource(source, range(len(source))), plan, {}),
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
    damage(beton, VICTIM, 0.5, bytes(64))
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
        assert dali.faults() == {"changed": 1}
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
