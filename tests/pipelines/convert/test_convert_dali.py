"""Conversion to tar shards: deterministic, shuffled as a whole, round trips, and options that shards do not have."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo
from mixed import SMALL, write_mixed

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.jpeg import read_header
from fastvicreg.pipelines.manifest import digest, manifest_path, read_manifest
from fastvicreg.pipelines.verify import verify_dataset

SHARDS = Settings(format="dali", shard_size=20 << 10)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "mixed")


def content(folder: Path) -> dict[str, bytes]:
    """All files of a converted folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples(source: Source) -> set[tuple[bytes, int, str]]:
    return {(bytes(source.encoded(i)), source.label(i), source.name(i)) for i in range(len(source))}


def test_a_shard_is_the_ustar_file_that_tarfile_writes(mixed: Path, tmp_path: Path) -> None:
    convert_dataset(mixed, tmp_path / "out", SHARDS)
    source = ShardSource(tmp_path / "out")
    assert len(source.layout.files) > 2
    number = 0
    for shard, (tar, index) in enumerate(source.layout.files):
        assert index is not None
        assert (tar.name, index.name) == (f"shard-{shard:06d}.tar", f"shard-{shard:06d}.idx")
        expected, lines = io.BytesIO(), []
        with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as written:
            for _ in range(int((source.layout.shard_N == shard).sum())):
                image, label = bytes(source.encoded(number)), source.label(number)
                places = []
                for extension, data in (
                    ("jpg", image),
                    ("cls", str(label).encode("ascii")),
                    ("cls.i32", struct.pack("<i", label)),
                ):
                    info = tarfile.TarInfo(f"{number:09d}.{extension}")
                    info.size = len(data)
                    places.append(f"{extension} {expected.tell() + 512} {len(data)} {info.name}")
                    written.addfile(info, io.BytesIO(data))
                lines.append(" ".join(places))
                number += 1
        assert tar.read_bytes() == expected.getvalue()
        assert index.read_text() == "\n".join([f"v1.2 {len(lines)}", *lines, ""])
        assert tar.stat().st_size <= SHARDS.shard_size
    assert number == len(source) == 10


def test_a_sample_larger_than_a_shard_has_its_own(mixed: Path, tmp_path: Path) -> None:
    summary = convert_dataset(mixed, tmp_path / "out", replace(SHARDS, shard_size=1))
    source = ShardSource(tmp_path / "out")
    assert source.layout.shard_N.tolist() == list(range(10))
    assert summary.images == 10
    assert not verify_dataset(tmp_path / "out", decode=True).findings


def test_the_order_is_a_permutation_that_the_seed_draws(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder(train=60, val=0)
    plain = open_source(folder)
    place = {plain.name(i): i for i in range(60)}
    orders = {}
    for seed in (0, 1, (1 << 64) - 1):
        convert_dataset(folder, tmp_path / str(seed), replace(SHARDS, seed=seed))
        source = ShardSource(tmp_path / str(seed))
        orders[seed] = [place[source.name(i)] for i in range(60)]
        assert sorted(orders[seed]) == list(range(60))
        assert samples(source) == samples(plain)
        # Over all shards at once: none holds a run of neighbours.
        assert (np.abs(np.diff(orders[seed])) == 1).sum() < 10
    assert len({tuple(order) for order in orders.values()}) == 3
    # Golden: a dataset written again next year is the same.
    assert orders[0][:8] == [30, 47, 44, 34, 22, 53, 8, 40]


def test_the_bytes_do_not_depend_on_workers_or_time(mixed: Path, tmp_path: Path) -> None:
    written = []
    for workers in (1, 2, 5):
        convert_dataset(mixed, tmp_path / str(workers), SHARDS, workers=workers)
        written.append(content(tmp_path / str(workers)))
    assert written[0] == written[1] == written[2]


def test_all_is_baseline_and_skips_are_listed_in_the_sources_order(mixed: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    summary = convert_dataset(mixed, target, replace(SHARDS, max_size=75, quality=80))
    source, manifest = ShardSource(target), read_manifest(target / "dataset.manifest")
    assert manifest_path(target) == target / "dataset.manifest"
    skipped = ["a/broken.jpg", "a/no_image.png", "b/empty.jpg"]
    assert [entry.path for entry in summary.skipped] == [entry.path for entry in manifest.skipped] == skipped
    reasons = {entry.path: entry.reason for entry in manifest.skipped}
    assert "truncated" in reasons["a/broken.jpg"]
    assert "not an image" in reasons["a/no_image.png"]
    assert manifest.classes == source.classes == ("a", "b")
    for i in range(len(source)):
        header = read_header(source.encoded(i))
        assert (header.process, header.precision) == ("baseline", 8)
        assert (header.width, header.height) == source.size(i)
        assert max(source.size(i)) <= 75
        assert int(manifest.hash_N[i]) == digest(source.stored(i)) == source.expected_hash(i)
        assert source.label(i) == ("a", "b").index(source.name(i)[0])
    kept = convert_dataset(mixed, tmp_path / "kept", SHARDS)
    assert (kept.kept, kept.encoded, kept.raw) == (4, 6, 0)


def test_round_trips_keep_bytes_labels_and_paths(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder(train=30, val=0)
    convert_dataset(folder, tmp_path / "a.beton", SMALL)
    convert_dataset(tmp_path / "a.beton", tmp_path / "b", SHARDS)
    convert_dataset(tmp_path / "b", tmp_path / "c", replace(SHARDS, seed=5, shard_size=40 << 10))
    convert_dataset(tmp_path / "c", tmp_path / "d.beton", SMALL)
    convert_dataset(folder, tmp_path / "direct", SHARDS)
    expected = samples(open_source(folder))
    for name in ("a.beton", "b", "c", "d.beton", "direct"):
        source = open_source(tmp_path / name)
        assert samples(source) == expected
        assert source.classes == ("class0", "class1", "class2")
        assert not verify_dataset(tmp_path / name, decode=True).findings
    shards = {name: data for name, data in content(tmp_path / "direct").items() if name != "dataset.manifest"}
    assert shards == {name: data for name, data in content(tmp_path / "b").items() if name != "dataset.manifest"}


def test_without_classes_the_label_is_minus_one_in_both_members(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(encoded(photo(number, 30, 20)))
    convert_dataset(folder, tmp_path / "out", SHARDS)
    source = open_source(tmp_path / "out")
    assert ([source.label(i) for i in range(3)], source.classes) == ([-1, -1, -1], ())
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        content = {member.name: tar.extractfile(member) for member in tar if ".cls" in member.name}
        read = {name: file.read() for name, file in content.items() if file}
    assert {data for name, data in read.items() if name.endswith(".cls")} == {b"-1"}
    assert {data for name, data in read.items() if name.endswith(".i32")} == {b"\xff\xff\xff\xff"}
    (tmp_path / "out" / "dataset.manifest").unlink()
    source = open_source(tmp_path / "out")
    assert ([source.label(i) for i in range(3)], source.classes) == ([-1, -1, -1], ())


def test_a_class_number_beyond_four_bytes_is_refused(mixed: Path, tmp_path: Path) -> None:
    class Large:
        classes = ()

        def __init__(self, source: Source) -> None:
            self.encoded, self.size, self.name, self._count = source.encoded, source.size, source.name, len(source)

        def __len__(self) -> int:
            return self._count

        def label(self, index: int) -> int:
            return 1 << 31

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fastvicreg.pipelines.convert.run.open_source", lambda path, **options: Large(open_source(path, **options))
        )
        with pytest.raises(UserError, match=r"class number 2147483648 .* 4 bytes"):
            convert_dataset(mixed, tmp_path / "x", SHARDS)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (replace(SHARDS, raw=True), "--raw: shards hold JPEGs"),
        (replace(SHARDS, proportion=0.5), r"--proportion 0\.5: shards hold JPEGs"),
        (replace(SHARDS, page_size=16 << 20), "--page-size 16: shards have no pages"),
        (replace(SHARDS, shard_size=0), "--shard-size 0"),
        (replace(SHARDS, shard_size=-1 << 20), "--shard-size -1"),
        (replace(SHARDS, format="ffcv"), r"--shard-size 0\.0195312: a \.beton is one file"),
        (replace(SHARDS, format="dally"), "did you mean 'dali'"),
    ],
)
def test_options_that_shards_do_not_have_are_named(mixed: Path, tmp_path: Path, settings: Settings, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        convert_dataset(mixed, tmp_path / "x", settings)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("name", ["x.tar", "x.beton", "x.idx"])
def test_the_target_is_a_folder_not_a_file(mixed: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="written into a folder: name it x"):
        convert_dataset(mixed, tmp_path / name, SHARDS)
    with pytest.raises(UserError, match=r"does not end in \.beton: .*--format shards"):
        convert_dataset(mixed, tmp_path / "shards", SMALL)
    assert not list(tmp_path.glob("x*"))
    convert_dataset(mixed, tmp_path / "images.500px", SHARDS)
    assert len(open_source(tmp_path / "images.500px")) == 10
