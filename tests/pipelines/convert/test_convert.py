"""Conversion: what is kept, re-encoded or skipped; the same bytes for any number of workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo
from mixed import SMALL, both, write_mixed
from PIL import Image

from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.convert.prepare import Stored, prepare
from fastvicreg.pipelines.decode import decode_rgb
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.manifest import digest, manifest_path, read_manifest
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.verify import verify_dataset


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "mixed")


def outcome(folder: Path, settings: Settings) -> dict[str, Stored]:
    source = open_source(folder)
    return {source.name(i): prepare(source, i, settings).stored for i in range(len(source))}


def pillow_coded(image: Image.Image) -> bytes:
    """The image as Pillow encodes it with the default settings of a conversion."""
    return encoded(image, quality=90, subsampling="4:2:0")


def loss(data: bytes | memoryview, image: Image.Image) -> float:
    """Mean absolute difference of an encoded image from its pixels."""
    return float(np.abs(decode_rgb(data).astype(int) - np.asarray(image)).mean())


def test_fit_jpegs_keep_their_bytes_and_all_else_is_encoded_again(mixed: Path, tmp_path: Path) -> None:
    kinds = outcome(mixed, SMALL)
    assert {name for name, kind in kinds.items() if kind == Stored.KEPT} == {
        "a/baseline.jpg",
        "a/grey.jpg",
        "b/large.jpg",
        "b/tail.jpg",
    }
    skipped = ["a/broken.jpg", "a/no_image.png", "b/empty.jpg"]
    assert [name for name, kind in kinds.items() if kind == Stored.SKIPPED] == skipped

    summary = convert_dataset(mixed, tmp_path / "m.beton", SMALL)
    assert (summary.images, summary.kept, summary.encoded, summary.raw) == (10, 4, 6, 0)
    assert [entry.path for entry in summary.skipped] == skipped
    assert "truncated" in summary.skipped[0].reason
    source = open_source(tmp_path / "m.beton")
    assert source.classes == ("a", "b")
    for index in range(10):
        original = (mixed / source.name(index)).read_bytes()
        assert source.label(index) == ("a", "b").index(source.name(index)[0])
        if kinds[source.name(index)] == Stored.KEPT:
            assert source.encoded(index) == original
            continue
        pixels = Image.fromarray(decode_rgb(original))
        assert source.size(index) == pixels.size
        assert loss(source.encoded(index), pixels) < 1.05 * loss(pillow_coded(pixels), pixels)


def test_the_longest_side_is_limited_and_the_shape_kept(mixed: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, max_size=75)
    convert_dataset(mixed, tmp_path / "m.beton", settings)
    source = open_source(tmp_path / "m.beton")
    sizes = {source.name(i): source.size(i) for i in range(len(source))}
    assert sizes["b/large.jpg"] == (75, 50)
    assert sizes["a/baseline.jpg"] == (75, 50)
    assert sizes["a/grey.jpg"] == (50, 40)
    large = Image.open(mixed / "b" / "large.jpg").resize((75, 50), Image.Resampling.BICUBIC)
    index = list(sizes).index("b/large.jpg")
    assert loss(source.encoded(index), large) < 1.05 * loss(pillow_coded(large), large)
    assert outcome(mixed, settings)["a/grey.jpg"] == Stored.KEPT
    assert outcome(mixed, replace(SMALL, max_size=300))["b/large.jpg"] == Stored.KEPT
    assert outcome(mixed, replace(SMALL, max_size=299))["b/large.jpg"] == Stored.ENCODED


def test_reencode_keeps_no_bytes(mixed: Path) -> None:
    kinds = outcome(mixed, replace(SMALL, reencode=True))
    assert sum(kind == Stored.SKIPPED for kind in kinds.values()) == 3
    assert sum(kind == Stored.ENCODED for kind in kinds.values()) == 10


def test_decode_finds_damage_that_the_markers_do_not_show(tmp_path: Path) -> None:
    data = bytearray(encoded(photo(4, 200, 150)))
    scan = data.index(b"\xff\xda") + 14
    data[scan + 200 : scan + 260] = bytes(60)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "damaged.jpg").write_bytes(data)
    (tmp_path / "x" / "sound.jpg").write_bytes(encoded(photo(4, 200, 150)))
    assert list(outcome(tmp_path / "x", SMALL).values()) == [Stored.KEPT, Stored.KEPT]
    damaged, sound = outcome(tmp_path / "x", replace(SMALL, decode=True)).values()
    assert damaged != Stored.KEPT
    assert sound == Stored.KEPT


def test_raw_and_proportion_store_pixels(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder(train=40, val=0)
    plain = open_source(folder)
    stored = {}
    for name, settings in {
        "raw": replace(SMALL, raw=True),
        "0": replace(SMALL, proportion=0.0),
        "half": replace(SMALL, proportion=0.5),
        "other": replace(SMALL, proportion=0.5, seed=1),
        "1": replace(SMALL, proportion=1.0),
    }.items():
        convert_dataset(folder, tmp_path / f"{name}.beton", settings)
        source = BetonSource(tmp_path / f"{name}.beton")
        stored[name] = [source.is_raw(i) for i in range(40)]
        for i in range(40):
            assert np.array_equal(decode_rgb(source.encoded(i)), decode_rgb(plain.encoded(i)))
        assert not verify_dataset(tmp_path / f"{name}.beton", decode=True).findings
    assert all(stored["raw"])
    assert all(stored["0"])
    assert not any(stored["1"])
    assert 10 <= sum(stored["half"]) <= 30
    assert stored["half"] != stored["other"]


def test_a_beton_converts_to_the_same_samples(mixed: Path, tmp_path: Path) -> None:
    convert_dataset(mixed, tmp_path / "raw.beton", replace(SMALL, raw=True))
    convert_dataset(tmp_path / "raw.beton", tmp_path / "again.beton", replace(SMALL, raw=True))
    assert (tmp_path / "again.beton").read_bytes() == (tmp_path / "raw.beton").read_bytes()
    first, second = open_source(tmp_path / "raw.beton"), open_source(tmp_path / "again.beton")
    assert len(first) == len(second) == 10
    for i in range(10):
        assert first.encoded(i) == second.encoded(i)
        assert (first.label(i), first.name(i)) == (second.label(i), second.name(i))
    assert first.classes == second.classes


@pytest.mark.parametrize("settings", [SMALL, replace(SMALL, proportion=0.5, max_size=60)])
def test_bytes_do_not_depend_on_the_workers(mixed: Path, tmp_path: Path, settings: Settings) -> None:
    results = []
    for workers in (1, 2, 5):
        target = tmp_path / f"{workers}.beton"
        convert_dataset(mixed, target, settings, workers=workers)
        results.append(both(target))
    assert results[0] == results[1] == results[2]


def test_the_manifest_tells_each_samples_story(mixed: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.beton"
    convert_dataset(mixed, target, SMALL)
    manifest, source = read_manifest(manifest_path(target)), BetonSource(target)
    assert len(manifest) == len(source) == 10
    assert manifest.classes == ("a", "b")
    assert manifest.settings["quality"] == 90
    assert [entry.path for entry in manifest.skipped] == ["a/broken.jpg", "a/no_image.png", "b/empty.jpg"]
    assert all(entry.reason for entry in manifest.skipped)
    for i in range(10):
        assert int(manifest.hash_N[i]) == digest(source.stored(i))
        assert int(manifest.size_N[i]) == len(source.stored(i))
        assert (int(manifest.width_N[i]), int(manifest.height_N[i])) == source.size(i)
        assert int(manifest.label_N[i]) == source.label(i)
        assert (mixed / manifest.paths[i]).is_file()


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.jpg")
    (folder / name).write_bytes(encoded(photo(1, 30, 20)))
    convert_dataset(folder, tmp_path / "n.beton", SMALL)
    source = open_source(tmp_path / "n.beton")
    assert source.name(0) == name
    assert (source.label(0), source.classes) == (-1, ())


def test_a_page_grows_where_a_sample_does_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "big"
    folder.mkdir()
    for number, side in enumerate((50, 900, 1000, 60, 830)):
        (folder / f"{number}.jpg").write_bytes(encoded(photo(number, side, side)))
    summary = convert_dataset(folder, tmp_path / "big.beton", replace(SMALL, raw=True))
    assert summary.notes == ("a page holds 4 MiB instead of 2 MiB: a sample did not fit",)
    assert not verify_dataset(tmp_path / "big.beton", decode=True).findings
    assert (tmp_path / "big.beton").read_bytes()[4:8] == (4 << 20).to_bytes(4, "little")


def test_ordered_work_is_in_order_bounded_and_raises_in_its_place() -> None:
    begun: list[int] = []

    def work(index: int) -> int:
        begun.append(index)
        if index == 100:
            raise ArithmeticError
        return index

    results = in_order(work, range(7, 1000), workers=2, chunk=4)
    assert [next(results) for _ in range(20)] == list(range(7, 27))
    assert max(begun) < 27 + 6 * 4
    with pytest.raises(ArithmeticError):
        list(results)
    assert max(begun) < 100 + 6 * 4
    assert list(in_order(abs, range(0))) == []
