"""Verification: a sound dataset has no faults, and each damage is found where it is, and only there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from images import encoded, photo

from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.manifest import manifest_path
from fastvicreg.pipelines.verify import verify_dataset

PAGE = 1 << 21


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(train=40, val=0)


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "forty.beton"
    convert_dataset(folder, target, Settings(page_size=PAGE))
    return target


def place(file: Path, sample: int) -> tuple[int, int]:
    """(offset, size) of a sample's bytes."""
    source = BetonSource(file)
    start = int(source.layout.image_N["data_ptr"][sample])
    return start, len(source.stored(sample))


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 255
    file.write_bytes(data)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_sound_datasets_have_no_faults(folder: Path, file: Path, decode: bool, workers: int) -> None:
    total = sum(path.stat().st_size for path in folder.rglob("*.jpg"))
    for path, hashed in ((folder, False), (file, True)):
        seen: list[tuple[int, ...]] = []
        report = verify_dataset(path, decode=decode, workers=workers, on_progress=lambda *at, s=seen: s.append(at))
        assert report.findings == ()
        assert (report.samples, report.bytes, report.hashed, report.decoded) == (40, total, hashed, decode)
        assert [entry[0] for entry in seen] == list(range(1, 41))
        assert seen[-1] == (40, 40, total, 0)


def test_with_a_manifest_any_flipped_byte_is_found(file: Path) -> None:
    for sample in (3, 29):
        start, size = place(file, sample)
        flip(file, start + size // 2)
    report = verify_dataset(file)
    names = [open_source(file).name(sample) for sample in (3, 29)]
    assert [(finding.sample, finding.path) for finding in report.findings] == [(3, names[0]), (29, names[1])]
    assert all("manifest's hash" in finding.fault for finding in report.findings)


def test_without_one_markers_and_sizes_are_checked(file: Path) -> None:
    start, _ = place(file, 5)
    flip(file, start)  # no longer an SOI
    start, size = place(file, 11)
    flip(file, start + size - 1)  # no longer an EOI
    data = bytearray(file.read_bytes())
    start, _ = place(file, 17)
    width = data.index(b"\xff\xc0", start) + 8
    data[width] ^= 1
    file.write_bytes(data)
    manifest_path(file).unlink()
    report = verify_dataset(file)
    assert [finding.sample for finding in report.findings] == [5, 11, 17]
    assert "not an image" in report.findings[0].fault
    assert "broken data stream" in report.findings[1].fault
    assert "metadata says" in report.findings[2].fault
    assert report.findings[2].path == "sample 17"
    assert not report.hashed


def test_decode_finds_what_headers_do_not_show(folder: Path) -> None:
    image = encoded(photo(1, 200, 150), "PNG")
    (folder / "class0" / "cut.png").write_bytes(image[: len(image) // 2])
    assert verify_dataset(folder).findings == ()
    (finding,) = verify_dataset(folder, decode=True).findings
    assert finding.path == "class0/cut.png"


def test_a_folders_bad_files_are_named(folder: Path) -> None:
    (folder / "class1" / "001.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    whole = (folder / "class2" / "002.jpg").read_bytes()
    (folder / "class2" / "002.jpg").write_bytes(whole[:-100])
    (folder / "class2" / "junk_first.jpg").write_bytes(b"\xff\xd8\xff\xd8" + whole)
    (folder / "class2" / "gone.jpg").symlink_to(folder / "class2" / "002.jpg")
    report = verify_dataset(folder)
    assert [finding.path for finding in report.findings] == [
        "class1/001.jpg",
        "class2/002.jpg",
        "class2/gone.jpg",
        "class2/junk_first.jpg",
    ]


def test_a_file_that_contradicts_itself_is_one_finding(file: Path) -> None:
    data = file.read_bytes()
    for damaged in (data[:-1], data[:-24], data[: len(data) // 2], data[:4] + b"\0\0\0\0" + data[8:]):
        file.write_bytes(damaged)
        (finding,) = verify_dataset(file).findings
        assert finding.sample == -1
        assert str(file) in finding.fault


def test_what_is_no_dataset_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing here but a few words of text")
    for path in (tmp_path / "missing", tmp_path / "text", tmp_path):
        with pytest.raises(UserError) as refused:
            verify_dataset(path)
        assert str(path) in str(refused.value)
