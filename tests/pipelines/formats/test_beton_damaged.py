"""A .beton that is cut, changed or contradicts itself: one line that names the file, never wrong pixels."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from betons import PAGE, SMALL, write_by_hand
from images import photo

from fastvicreg.contracts import Cursor, Fault
from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert import convert_dataset
from fastvicreg.pipelines.formats.beton.layout import HEADER, IMAGE, field_descriptors, read_layout
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.manifest import ChangedError, manifest_path, read_manifest
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe


def test_every_cut_is_one_line_that_names_the_file(bare: Path, tmp_path: Path) -> None:
    data = bare.read_bytes()
    table = 2 * PAGE
    front = 24 + 2 * 1041 + 7 * 24
    lengths = [*range(front + 2), *range(front + 2, table, 40_009), *range(table - 2, len(data)), len(data)]
    cut = tmp_path / "cut.beton"
    cut.write_bytes(data)
    for length in reversed(lengths[:-1]):
        os.truncate(cut, length)
        with pytest.raises(UserError) as refused:
            open_source(cut)
        line = str(refused.value)
        assert str(cut) in line
        assert "\n" not in line
        if length >= 24:
            assert isinstance(refused.value, DamagedError), length
    cut.write_bytes(data)
    assert len(open_source(cut)) == 7


METADATA = 24 + 2 * 1041
TABLE = 2 * PAGE


@pytest.mark.parametrize(
    ("at", "new", "says", "damaged"),
    [
        (0, struct.pack("<H", 1), "version", False),
        (0, struct.pack("<H", 3), "version", False),
        (2, struct.pack("<H", 0), "no RGB image field", False),
        (4, struct.pack("<I", 3 << 20), "page size 3145728", True),
        (4, struct.pack("<I", 1 << 20), "page size 1048576", True),
        (4, struct.pack("<I", 0), "page size 0", True),
        (8, struct.pack("<Q", 0), "no samples", False),
        (8, struct.pack("<Q", 1 << 63), "metadata would end", True),
        (8, struct.pack("<Q", 8), "is not in the allocation table", True),
        (8, struct.pack("<Q", 6), "is no sample of the file", True),
        (16, struct.pack("<Q", 0), "interrupted", True),
        (16, struct.pack("<Q", 1 << 62), "outside", True),
        (16, struct.pack("<Q", 100), "outside", True),
        (16, struct.pack("<Q", TABLE + 1), "within a row", True),
        (24, b"\xff", "type 255", False),
        (24, b"\x01", "no RGB image field", False),
        (METADATA, b"\x02", "sample 0 is stored in an unknown mode", True),
        (METADATA, b"\x01", "sample 0 is raw", True),
        (METADATA + 24 + 1, b"\0\0", "sample 1 has no pixels", True),
        (METADATA + 48 + 5, struct.pack("<Q", PAGE + 3), "image of sample 2 is not in", True),
        (METADATA + 48 + 5, struct.pack("<Q", PAGE), "image of sample 2 is not in", True),
        (TABLE + 8, struct.pack("<Q", METADATA), "outside the pages", True),
        (TABLE + 8, struct.pack("<Q", (1 << 64) - 1), "outside the pages", True),
        (TABLE + 16, struct.pack("<Q", (1 << 64) - 1), "outside the pages", True),
        (TABLE + 16, struct.pack("<Q", 5000), "overlaps", True),
        (TABLE + 6 * 24 + 16, struct.pack("<Q", 0), "image of sample 6 is not in", True),
        (TABLE + 24, struct.pack("<Q", 77), "is no sample of the file", True),
    ],
)
def test_every_contradiction_is_one_line(bare: Path, at: int, new: bytes, says: str, damaged: bool) -> None:
    data = bytearray(bare.read_bytes())
    assert data[at : at + len(new)] != new
    data[at : at + len(new)] = new
    bare.write_bytes(data)
    with pytest.raises(UserError) as refused:
        open_source(bare)
    line = str(refused.value)
    assert says in line
    assert str(bare) in line
    assert "\n" not in line
    assert isinstance(refused.value, DamagedError) == damaged


def test_a_sample_across_two_pages_is_refused(tmp_path: Path) -> None:
    rows = np.zeros(2, np.dtype([("", IMAGE)], align=True))
    first, second = bytes(PAGE - 30), np.asarray(photo(2, 8, 8)).tobytes()
    rows[0], rows[1] = ((0, 8, 8, PAGE),), ((1, 8, 8, 2 * PAGE - 30),)
    write_by_hand(tmp_path / "two.beton", [("image", 2)], rows, [[first], [second]])
    with pytest.raises(DamagedError, match=r"sample 1 .* straddles two pages"):
        read_layout(tmp_path / "two.beton")


@pytest.mark.parametrize("name", ["a_name_of_17_char", "", "größe"])
def test_a_field_name_that_does_not_fit_is_refused(name: str) -> None:
    assert len(field_descriptors([("a_name_of_16_cha", 1)])) == 1041
    with pytest.raises(UserError, match=r"1 to 16 ASCII"):
        field_descriptors([(name, 1)])


def test_a_flipped_byte_is_found_at_each_read(file: Path) -> None:
    data = bytearray(file.read_bytes())
    middle = PAGE + len(BetonSource(file).stored(0)) + 300
    data[middle] ^= 8
    file.write_bytes(data)
    source = BetonSource(file)
    for _ in range(2):
        with pytest.raises(ChangedError, match="differ from the manifest's hash"):
            source.encoded(1)
    for index in (0, 2, 3, 4, 5, 6):
        source.encoded(index)
    plan = train_plan(7, seed=0, recipe=named_recipe("small"), image_size=16)
    engine = build_engine("native", source, plan, batch_size=7, workers=2)
    (crops,) = engine.batches(Cursor(0, 0))
    faulty = crops.fault_B != 0
    assert crops.fault_B[faulty].tolist() == [Fault.CHANGED]
    assert (crops.slot_B[faulty].tolist(), crops.index_B[faulty].tolist()) == ([1], [2])
    assert engine.faults().counts == {"changed": 1}
    engine.close()


@pytest.mark.parametrize("at", [METADATA + 16, METADATA + 1, TABLE - 1])
def test_a_changed_index_is_refused_where_there_is_a_manifest(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    if at == TABLE - 1:  # padding is nobody's
        assert len(open_source(file)) == 7
        return
    with pytest.raises(DamagedError, match="do not belong together"):
        open_source(file)


def test_a_field_name_that_is_no_ascii_is_refused(bare: Path) -> None:
    data = bytearray(bare.read_bytes())
    data[HEADER.itemsize + 1] ^= 128
    bare.write_bytes(data)
    with pytest.raises(DamagedError, match="a field's name is"):  # FFCV's reader would end in a traceback
        open_source(bare)


def test_another_files_manifest_is_refused(file: Path, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    other = tmp_path / "other.beton"
    convert_dataset(make_folder(name="more", train=8, val=0), other, SMALL)
    manifest_path(other).replace(manifest_path(file))
    with pytest.raises(DamagedError, match="do not belong together") as refused:
        open_source(file)
    assert str(manifest_path(file)) in str(refused.value)


def test_a_damaged_manifest_is_one_line(file: Path) -> None:
    where = manifest_path(file)
    data = where.read_bytes()
    for length in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        where.write_bytes(data[:length])
        with pytest.raises(UserError) as refused:
            read_manifest(where)
        assert str(where) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_folder_and_other_files_are_no_beton(tmp_path: Path, folder: Path) -> None:
    image = next(folder.rglob("*.jpg"))
    with pytest.raises(UserError, match=r"is a file, but no \.beton"):
        open_source(image)
    with pytest.raises(UserError, match="cannot read"):
        BetonSource(tmp_path)
