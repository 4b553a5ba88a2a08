""".beton files: the layout byte by byte, FFCV's other fields, every cut and contradiction, flipped bytes."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo

from fastvicreg.contracts import Cursor, Fault
from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.decode import decode_rgb
from fastvicreg.pipelines.formats.beton.layout import ALLOCATION, HEADER, IMAGE, field_descriptors, read_layout
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.manifest import ChangedError, digest, manifest_path, read_manifest
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.pipelines.sources import find_splits

PAGE = 1 << 21
SMALL = Settings(page_size=PAGE)


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(train=7, val=0)


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    """A .beton of seven JPEGs, with a manifest."""
    target = tmp_path / "seven.beton"
    convert_dataset(folder, target, SMALL, workers=2)
    return target


@pytest.fixture
def bare(file: Path) -> Path:
    """The same without its manifest."""
    manifest_path(file).unlink()
    return file


def write_by_hand(path: Path, fields: list[tuple[str, int]], rows: np.ndarray, data: list[list[bytes]]) -> None:
    """A file as FFCV's writer lays it out; ``data`` is each sample's allocations, rows hold indices as pointers."""
    prefix = HEADER.itemsize + len(field_descriptors(fields))
    at = start = -(-(prefix + rows.nbytes) // PAGE) * PAGE
    table, pages = [], bytearray()
    for sample, parts in enumerate(data):
        for part in parts:
            table.append((sample, at, len(part)))
            pages += part
            at += len(part)
    end = -(-at // PAGE) * PAGE
    content = bytearray(end)
    header = np.array((2, len(fields), PAGE, len(rows), end), HEADER)
    content[:prefix] = header.tobytes() + field_descriptors(fields)
    content[prefix : prefix + rows.nbytes] = rows.tobytes()
    content[start : start + len(pages)] = pages
    path.write_bytes(bytes(content) + np.array(table[::-1], ALLOCATION).tobytes())


def test_what_was_written_is_read_back(folder: Path, file: Path) -> None:
    plain, source = open_source(folder), open_source(file)
    assert isinstance(source, BetonSource)
    assert len(source) == len(plain) == 7
    assert source.classes == plain.classes
    for index in range(7):
        assert source.encoded(index) == plain.encoded(index)
        assert isinstance(source.encoded(index), memoryview)
        assert source.label(index) == plain.label(index)
        assert source.size(index) == plain.size(index)
        assert source.name(index) == plain.name(index)
        assert source.expected_hash(index) == digest(plain.encoded(index))
        assert not source.is_raw(index)


def test_a_file_has_no_splits(file: Path) -> None:
    assert find_splits(file) == (file, None)


def test_without_a_manifest_samples_are_named_by_number(bare: Path) -> None:
    source = BetonSource(bare)
    assert source.name(3) == "sample 3"
    assert source.classes == ("0", "1", "2")
    assert source.expected_hash(3) is None


def test_the_layout_is_ffcvs_byte_by_byte(folder: Path, file: Path) -> None:
    data, plain = file.read_bytes(), open_source(folder)
    version, fields, page, samples, table = struct.unpack_from("<HHIQQ", data, 0)
    assert (version, fields, page, samples) == (2, 2, PAGE, 7)
    assert data[24:41] == b"\x02image".ljust(17, b"\0")
    assert data[24 + 1041 : 24 + 1041 + 17] == b"\x01label".ljust(17, b"\0")
    assert table == len(data) - 7 * 24 == 2 * PAGE
    expected_ptr = PAGE
    for index in range(7):
        mode, width, height, ptr, label = struct.unpack_from("<BHHQ3xq", data, 24 + 2 * 1041 + 24 * index)
        size = len(plain.encoded(index))
        assert (mode, (width, height), ptr, label) == (0, plain.size(index), expected_ptr, plain.label(index))
        assert struct.unpack_from("<QQQ", data, table + 24 * index) == (index, ptr, size)
        expected_ptr += size
    assert not any(data[24 + 2 * 1041 + 24 * 7 : PAGE])
    assert not any(data[expected_ptr:table])


def test_fields_in_any_order_an_unsorted_table_and_other_fields_are_read(tmp_path: Path) -> None:
    fields = [("weight", 0), ("text", 5), ("label", 1), ("image", 2), ("empty", 3), ("vector", 4), ("other", 1)]
    pointer = [("p", "<u8"), ("s", "<u8")]
    kinds = ("<f8", pointer, "<i8", IMAGE, pointer, "<u8", "<i8")
    row = np.dtype([("", kind) for kind in kinds], align=True)
    images = [encoded(photo(n, 20 + n, 30)) for n in range(3)]
    data = [[b"{}%d" % n, image, bytes(16)] for n, image in enumerate(images)]
    rows = np.zeros(3, row)
    at = PAGE
    for n, parts in enumerate(data):
        starts = [at, at + len(parts[0]), at + len(parts[0]) + len(parts[1])]
        at = starts[2] + 16
        rows[n] = (0.5, (starts[0], 3), 40 + n, (0, 20 + n, 30, starts[1]), (starts[2], 0), starts[2], 9)
    write_by_hand(tmp_path / "many.beton", fields, rows, data)
    source = BetonSource(tmp_path / "many.beton")
    assert [bytes(source.encoded(n)) for n in range(3)] == images
    assert [source.label(n) for n in range(3)] == [40, 41, 42]
    assert [source.size(n) for n in range(3)] == [(20, 30), (21, 30), (22, 30)]
    assert source.classes == ()


def test_a_file_that_is_cut_while_it_is_open_is_a_fault_not_the_end_of_the_process(
    folder: Path, tmp_path: Path
) -> None:
    convert_dataset(folder, tmp_path / "x.beton", SMALL)
    convert_dataset(folder, tmp_path / "shards", Settings(format="dali"))
    code = (
        "import os, sys\nfrom fastvicreg.pipelines import open_source\n"
        "source = open_source(sys.argv[1])\nwhole = bytes(source.encoded(0))\nos.truncate(sys.argv[2], 4096)\n"
        "try: source.encoded(6)\nexcept OSError as error: print(error.strerror)"
    )
    for data, file in (("x.beton", "x.beton"), ("shards", "shards/shard-000000.tar")):
        command = [sys.executable, "-c", code, str(tmp_path / data), str(tmp_path / file)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3])
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == "the file was cut to 4096 bytes after it had been opened\n"


@pytest.mark.parametrize(
    ("fields", "label", "note"),
    [
        ({"image": 2, "label": 1}, "label", ""),
        ({"idx": 1, "image": 2, "target": 1}, "target", "the labels are the field 'target', not 'idx'"),
        ({"image": 2, "Index": 1, "Y": 1}, "Y", "the labels are the field 'Y', not 'Index'"),
        ({"image": 2, "class": 1, "label": 1}, "label", "the labels are the field 'label', not 'class'"),
        ({"image": 2, "fine": 1}, "fine", "the labels are the field 'fine'"),
        ({"image": 2, "id": 1}, None, "no labels: 'id' numbers the samples (--label id takes it all the same)"),
        ({"image": 2, "label": 0}, None, "no labels: 'label' holds float values"),
        ({"image": 2, "label": 0, "idx": 1}, None, "no labels: 'label' holds float values; 'idx' numbers the samples"),
        ({"image": 2}, None, ""),
    ],
)
def test_the_field_of_the_labels_is_chosen_by_name_and_named(
    tmp_path: Path, fields: dict[str, int], label: str | None, note: str
) -> None:
    kinds = {0: "<f8", 1: "<i8", 2: IMAGE}
    rows = np.zeros(1, np.dtype([("", kinds[kind]) for kind in fields.values()], align=True))
    jpeg = encoded(photo(0, 20, 30))
    values = {name: (0, 20, 30, PAGE) if kind == 2 else 10 + at for at, (name, kind) in enumerate(fields.items())}
    rows[0] = tuple(values.values())
    write_by_hand(tmp_path / "x.beton", list(fields.items()), rows, [[jpeg]])
    source = BetonSource(tmp_path / "x.beton")
    assert source.label(0) == (-1 if label is None else values[label])
    assert (note in source.notes[0]) if note else (source.notes == ())
    for name in (name for name, kind in fields.items() if kind == 1):
        assert open_source(tmp_path / "x.beton", label=name).label(0) == values[name]
    with pytest.raises(UserError, match=r"--label image: .* has no int field of that name"):
        open_source(tmp_path / "x.beton", label="image")


def test_a_label_field_of_what_has_no_fields_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--label y names a field of a \.beton"):
        open_source(folder, label="y")


def test_raw_samples_have_their_pixels_and_no_label_is_minus_one(tmp_path: Path) -> None:
    pixels = np.asarray(photo(1, 21, 13))
    rows = np.zeros(1, np.dtype([("", IMAGE)], align=True))
    rows[0] = ((1, 21, 13, PAGE),)
    write_by_hand(tmp_path / "raw.beton", [("photo", 2)], rows, [[pixels.tobytes()]])
    source = BetonSource(tmp_path / "raw.beton")
    assert source.is_raw(0)
    assert source.label(0) == -1
    assert np.array_equal(decode_rgb(source.encoded(0)), pixels)


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
