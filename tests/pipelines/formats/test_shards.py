"""Reading tar shards, ours and foreign ones: samples, labels, names, what verify finds in them, and read-ahead."""

from __future__ import annotations

import gc
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bytes_on_disk import flip
from images import encoded, photo
from tars import members, write_shard

from fastvicreg.contracts import Source
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.formats.hints import PageHints
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.manifest import ChangedError
from fastvicreg.pipelines.verify import verify_dataset


def test_foreign_shards_are_read_in_the_order_of_names_and_indices(foreign: Path) -> None:
    source = open_source(foreign)
    assert isinstance(source, ShardSource)
    assert isinstance(source, Source)
    assert len(source) == 9
    images = [data for name, data in members(9) if name.endswith("jpg")]
    assert [bytes(source.encoded(i)) for i in range(9)] == images
    assert [source.label(i) for i in range(9)] == [n % 3 for n in range(9)]
    assert [source.size(i) for i in range(9)] == [(40 + n % 5, 30) for n in range(9)]
    assert (source.name(0), source.name(8)) == ("train-0000.tar/00000.jpg", "train-0001.tar/00008.jpg")
    assert source.classes == ("0", "1", "2")
    assert (source.expected_hash(0), source.is_raw(0)) == (None, False)
    assert not verify_dataset(foreign, decode=True).findings


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_other_writers_do_is_read(tmp_path: Path, kind: int) -> None:
    link = tarfile.TarInfo("aa.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    folder = tarfile.TarInfo("train")
    folder.type = tarfile.DIRTYPE
    images = [encoded(photo(n, 33, 22)) for n in range(3)]
    entries = [
        folder,
        link,
        ("train/b.json", b"{}"),
        ("train/b.cls", b"7"),
        ("train/b.JPEG", images[0]),
        ("../../escape.jpg", images[1]),
        ("é.jpg" if kind == tarfile.PAX_FORMAT else "/root/e.jpg", images[2]),
    ]
    write_shard(tmp_path / "s", "x", entries, kind)
    source = ShardSource(tmp_path / "s")
    assert [bytes(source.encoded(i)) for i in range(3)] == images
    assert [source.label(i) for i in range(3)] == [7, -1, -1]
    assert source.classes == ()
    assert not verify_dataset(tmp_path / "s", decode=True).findings
    # The names lead nowhere: they are shown, and nothing is written under them.
    assert source.name(1) == "x.tar/../../escape.jpg"
    before = sorted(path for path in tmp_path.rglob("*"))
    convert_dataset(tmp_path / "s", tmp_path / "out", Settings(format="dali"))
    new = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} - {
        path.relative_to(tmp_path).as_posix() for path in before
    }
    assert new == {"out", "out/dataset.manifest", "out/shard-000000.tar", "out/shard-000000.idx"}


def test_bytes_are_not_copied_and_outlive_the_source(ours: Path) -> None:
    source = ShardSource(ours)
    view = source.encoded(3)
    assert isinstance(view, memoryview)
    assert view.readonly
    expected = bytes(view)
    maps = Path("/proc/self/maps").read_text().count(str(ours))
    assert maps == len(source.layout.files)
    del source
    gc.collect()
    assert view == expected
    del view
    gc.collect()
    assert str(ours) not in Path("/proc/self/maps").read_text()


def test_no_descriptor_stays_open(ours: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    source = ShardSource(ours)
    assert len(source.layout.files) > 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_changed_byte_is_found_where_it_is(ours: Path) -> None:
    source = ShardSource(ours)
    shard, (start, size) = int(source.layout.shard_N[7]), source.layout.image_N2[7].tolist()
    names = [source.name(i) for i in range(40)]
    tar = source.layout.files[shard][0]
    del source
    flip(tar, start + size // 2)
    source = ShardSource(ours)
    for i in range(40):
        if i != 7:
            source.encoded(i)
    with pytest.raises(ChangedError, match="manifest's hash"):
        source.encoded(7)
    (finding,) = verify_dataset(ours).findings
    assert (finding.sample, finding.path) == (7, names[7])


def test_verify_finds_headers_and_class_numbers_that_changed(ours: Path) -> None:
    source = ShardSource(ours)
    # Of each second sample of a shard, so that opening, which looks at the first and the last, succeeds.
    first = np.flatnonzero(np.diff(source.layout.shard_N, prepend=-1))
    assert (np.diff(first) > 2).all()
    header, text, number = (int(at) + 1 for at in first[:3])
    tars = [source.layout.files[source.layout.shard_N[i]][0] for i in (header, text, number)]
    places = [source.layout.image_N2[i].tolist() for i in (header, text, number)]
    labels = [source.label(i) for i in (text, number)]
    after = [start + -(-size // 512) * 512 for start, size in places]
    flip(tars[0], places[0][0] - 512 + 20)
    data = bytearray(tars[1].read_bytes())
    data[after[1] + 512] = ord("9")
    tars[1].write_bytes(data)
    data = bytearray(tars[2].read_bytes())
    data[after[2] + 3 * 512 : after[2] + 3 * 512 + 4] = struct.pack("<i", -5)
    tars[2].write_bytes(data)
    found = {finding.sample: finding.fault for finding in verify_dataset(ours).findings}
    assert found.keys() == {header, text, number}
    assert "no regular member" in found[header]
    assert found[text] == f"its .cls is 9, recorded is {labels[0]}"
    assert found[number] == f"its .cls.i32 is -5, recorded is {labels[1]}"


def test_verify_finds_members_that_the_index_lacks(foreign: Path) -> None:
    index = foreign / "train-0001.idx"
    lines = index.read_text().splitlines()
    index.write_text("\n".join(["v1.2 3", *lines[1:3], lines[4], ""]))
    (finding,) = verify_dataset(foreign).findings
    assert finding.sample == -1
    assert "train-0001.tar: 3 members (such as 00007.jpg) are not in train-0001.idx" in finding.fault
    with (foreign / "train-0000.tar").open("r+b") as tar:
        tar.seek(-512, os.SEEK_END)
        tar.write(b"garbage")
    assert any("are no tar header" in finding.fault for finding in verify_dataset(foreign).findings)


def test_hints_cover_the_samples_joined_and_nothing_far(ours: Path, tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    ahead = PageHints(np.array([10 * page + 5, 30 * page, 11 * page - 1, 31 * page]), np.array([page, 1, 3, 2 * page]))
    assert ahead.runs(np.array([0, 1, 2, 3])) == [(10 * page, 12 * page), (30 * page, 33 * page)]
    assert ahead.runs(np.array([3, 2])) == [(10 * page, 12 * page), (31 * page, 33 * page)]
    assert ahead.runs(np.array([], np.int64)) == []
    convert_dataset(ours, tmp_path / "x.beton", Settings(page_size=1 << 21))
    for source in (ShardSource(ours), BetonSource(tmp_path / "x.beton")):
        runs = source._hints.runs(np.arange(len(source)))
        for i in range(len(source)):
            stored = source.stored(i)
            at = np.frombuffer(stored, np.uint8).ctypes.data
            assert any(start <= at and at + len(stored) <= end for start, end in runs)
        most = sum(len(source.stored(i)) + 2 * page for i in range(len(source)))
        assert sum(end - start for start, end in runs) <= most
        source.read_ahead(torch.arange(len(source)))
        assert [bytes(source.encoded(i))[:2] for i in range(3)] == [b"\xff\xd8"] * 3
