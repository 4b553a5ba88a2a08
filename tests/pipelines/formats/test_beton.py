""".beton files: the layout byte by byte, FFCV's other fields, every cut and contradiction, flipped bytes."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from betons import PAGE, SMALL, write_by_hand
from images import encoded, photo

from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.decode import decode_rgb
from fastvicreg.pipelines.formats.beton.layout import IMAGE
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.manifest import digest
from fastvicreg.pipelines.sources import find_splits


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


@pytest.mark.slow
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
        ({"image": 2, "label": 1}, "label", "no labels: 11 to 11 are no class numbers"),
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
    with pytest.raises(UserError, match=r"--label y names a member .* is a folder of images: leave it out"):
        open_source(folder, label="y")


def test_one_of_several_image_fields_is_named(tmp_path: Path) -> None:
    rows = np.zeros(1, np.dtype([("", IMAGE), ("", IMAGE)], align=True))
    rows[0] = ((0, 8, 9, PAGE), (0, 4, 5, PAGE + 3))
    write_by_hand(tmp_path / "two.beton", [("left", 2), ("right", 2)], rows, [[b"abc", b"de"]])
    with pytest.raises(UserError, match='image fields left, right, none of which is called "image": name one by --im'):
        open_source(tmp_path / "two.beton")
    with pytest.raises(UserError, match=r"--image top: .* has no RGB field of that name, only left, right"):
        open_source(tmp_path / "two.beton", image="top")
    for name, size, data in (("left", (8, 9), b"abc"), ("right", (4, 5), b"de")):
        source = open_source(tmp_path / "two.beton", image=name)
        assert (source.size(0), bytes(source.encoded(0))) == (size, data)


def test_raw_samples_have_their_pixels_and_no_label_is_minus_one(tmp_path: Path) -> None:
    pixels = np.asarray(photo(1, 21, 13))
    rows = np.zeros(1, np.dtype([("", IMAGE)], align=True))
    rows[0] = ((1, 21, 13, PAGE),)
    write_by_hand(tmp_path / "raw.beton", [("photo", 2)], rows, [[pixels.tobytes()]])
    source = BetonSource(tmp_path / "raw.beton")
    assert source.is_raw(0)
    assert source.label(0) == -1
    assert np.array_equal(decode_rgb(source.encoded(0)), pixels)
