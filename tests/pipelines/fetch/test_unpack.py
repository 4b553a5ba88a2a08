"""Compressed tar files as a source of convert."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from images import encoded, photo
from tars import members, write_tar

from fastvicreg.cli import main
from fastvicreg.errors import DamagedError
from fastvicreg.pipelines.convert import convert_dataset
from fastvicreg.pipelines.fetch import copies, local_copy, needs_copy


def zstandard(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)  # type: ignore[attr-defined]


PACK = {"gz": gzip.compress, "zst": zstandard, "xz": lzma.compress, "bz2": bz2.compress}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Two tar files of train and one of validation, as they are."""
    (tmp_path / "plain").mkdir()
    for name, first in (("x-train-0", 0), ("x-train-1", 6), ("x-val-0", 20)):
        write_tar(tmp_path / f"plain/{name}.tar", members(6, first))
    return tmp_path / "plain"


@pytest.mark.parametrize("ending", [*PACK, "tgz"])
def test_compressed_shards_become_what_plain_ones_do(plain: Path, tmp_path: Path, ending: str) -> None:
    (tmp_path / "packed/deep").mkdir(parents=True)
    for at, tar in enumerate(sorted(plain.iterdir())):
        name = tar.with_suffix(".tgz").name if ending == "tgz" else f"{tar.name}.{ending}"
        packed = PACK.get(ending, gzip.compress)(tar.read_bytes())
        (tmp_path / "packed/deep" / (tar.name if at == 1 else name)).write_bytes(
            tar.read_bytes() if at == 1 else packed
        )
    assert main(["convert", str(tmp_path / "packed"), str(tmp_path / "out")]) == 0
    assert main(["convert", str(plain), str(tmp_path / "expected")]) == 0
    for split in ("train", "val"):
        found, expected = (tmp_path / folder / f"{split}.beton" for folder in ("out", "expected"))
        assert found.read_bytes() == expected.read_bytes()
    assert not (tmp_path / "out.source").exists()


def test_one_file_or_a_pattern_of_them_is_a_source(plain: Path, tmp_path: Path) -> None:
    for tar in plain.glob("x-train-*"):
        (tmp_path / f"{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes()))
    convert_dataset(plain / "x-train-*.tar", tmp_path / "expected.beton")
    assert main(["convert", str(tmp_path / "x-train-{0,1}.tar.gz"), str(tmp_path / "out.beton")]) == 0
    assert (tmp_path / "out.beton").read_bytes() == (tmp_path / "expected.beton").read_bytes()
    assert main(["convert", str(tmp_path / "x-train-0.tar.gz"), str(tmp_path / "one.beton")]) == 0


@pytest.mark.parametrize("ending", PACK)
def test_a_cut_archive_is_named(plain: Path, tmp_path: Path, ending: str) -> None:
    archive = tmp_path / f"x.tar.{ending}"
    packed = PACK[ending]((plain / "x-val-0.tar").read_bytes())
    for content in (packed[: len(packed) // 2], b"no archive at all, but long enough to be read as one" * 20):
        archive.write_bytes(content)
        with pytest.raises(DamagedError, match=rf"x\.tar\.{ending} is cut short or damaged"):
            local_copy(archive, tmp_path / "c")


def test_what_is_unpacked_already_is_not_unpacked_again(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(gzip.compress((plain / "x-val-0.tar").read_bytes()))
    place = local_copy(archive, tmp_path / "c")
    with monkeypatch.context() as patched:
        patched.setattr(copies, "unpack", lambda *paths: pytest.fail("again"))
        assert local_copy(archive, tmp_path / "c") == place
    archive.write_bytes(gzip.compress((plain / "x-train-0.tar").read_bytes()))
    assert local_copy(archive, tmp_path / "c").read_bytes() == (plain / "x-train-0.tar").read_bytes()


def test_a_folder_of_other_files_is_left_alone(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((plain / "x-val-0.tar").read_bytes()))
    (tmp_path / "o.beton.source").mkdir()
    (tmp_path / "o.beton.source/mine.tar").write_bytes(b"mine")
    assert main(["convert", str(tmp_path / "x.tar.gz"), str(tmp_path / "o.beton")]) == 2
    assert "o.beton.source holds other files" in capsys.readouterr().err
    assert (tmp_path / "o.beton.source/mine.tar").read_bytes() == b"mine"


def test_archives_beside_images_are_what_these_came_from(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "d/a").mkdir(parents=True)
    (tmp_path / "d/x.tar.gz").write_bytes(gzip.compress(b""))
    assert needs_copy(tmp_path / "d")
    (tmp_path / "d/a/1.jpg").write_bytes(encoded(photo(0, 20, 20)))
    assert not needs_copy(tmp_path / "d")
    assert not needs_copy(plain)
