"""Tar shards that are damaged, incomplete or not what their index says: one line each, nothing silent, no crash."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from bytes_on_disk import flip
from images import encoded, photo
from tars import index_by_tarfile, members, write_shard, write_tar

from fastvicreg.contracts import Cursor, Fault
from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.formats.folder.source import FolderSource
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.manifest import ChangedError
from fastvicreg.pipelines.plan import eval_plan
from fastvicreg.pipelines.verify import verify_dataset


def refused(path: Path, kind: type[UserError] = DamagedError) -> str:
    with pytest.raises(UserError) as error:
        open_source(path)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_index_that_points_at_a_link_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_shard(tmp_path / "s", "x", [link, ("b.jpg", encoded(photo(1, 20, 20)))])
    (tmp_path / "s" / "x.idx").write_text("v1.2 1\njpg 512 300 a.jpg\n")
    assert "no regular member begins at byte 512, where a.jpg should" in refused(tmp_path / "s")


def test_a_stale_index_is_noticed_sample_by_sample(foreign: Path) -> None:
    tar = foreign / "train-0000.tar"
    source = ShardSource(foreign)
    start = int(source.layout.image_N2[2][0])
    del source
    flip(tar, start - 512 + 130)  # in the size, of a sample that is neither first nor last
    source = ShardSource(foreign)
    with pytest.raises(ChangedError, match=f"begins at byte {start}"):
        source.encoded(2)
    engine = build_engine("native", source, eval_plan(9, resize=16, crop=16), batch_size=9)
    (crops,) = engine.batches(Cursor(0, 0))
    engine.close()
    assert crops.fault_B.tolist() == [0, 0, Fault.CHANGED, 0, 0, 0, 0, 0, 0]


def test_a_missing_shard_is_named(ours: Path) -> None:
    kept = ours.with_name("kept")
    shutil.copytree(ours, kept)
    last = len(list(kept.glob("*.tar"))) - 1
    for number, both in ((1, False), (1, True), (0, True), (last, True)):
        shutil.rmtree(ours)
        shutil.copytree(kept, ours)
        (ours / f"shard-{number:06d}.tar").unlink()
        if both:
            (ours / f"shard-{number:06d}.idx").unlink()
        text = refused(ours)
        assert f"shard-{number:06d}.tar is missing" in text
        assert ("of the manifest's 40 samples" in text) == both
    assert verify_dataset(ours).findings[0].sample == -1


def test_an_index_of_another_tar_file_is_refused(foreign: Path, ours: Path) -> None:
    write_tar(foreign / "other.tar", members(5, 100))
    shutil.copy(foreign / "train-0000.idx", foreign / "other.idx")
    assert "other.idx is not the index of other.tar" in refused(foreign)
    shutil.copy(foreign / "train-0000.tar", foreign / "other.tar")
    write_tar(foreign / "train-0000.tar", members(1))
    assert "train-0000.tar is cut short, or train-0000.idx is another tar file's" in refused(foreign)
    for name in ("shard-000000.idx", "shard-000001.idx"):
        index_by_tarfile((ours / name).with_suffix(".tar"), ours / name)
    ShardSource(ours)
    write_tar(ours / "shard-000001.tar", members(3))
    index_by_tarfile(ours / "shard-000001.tar", ours / "shard-000001.idx")
    assert "is missing" in refused(ours) or "do not belong together" in refused(ours)


def test_another_manifest_is_refused(ours: Path, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    convert_dataset(
        make_folder(name="others", train=40, val=0, side=50),
        tmp_path / "more",
        Settings(format="dali", shard_size=20 << 10),
    )
    shutil.copy(tmp_path / "more" / "dataset.manifest", ours)
    assert "do not belong together" in refused(ours)


@pytest.mark.parametrize("length", [0, 100, 512, 5000])
def test_a_cut_tar_file_is_refused(ours: Path, length: int) -> None:
    os.truncate(ours / "shard-000001.tar", length)
    text = refused(ours)
    assert "shard-000001.tar is cut short" in text
    (finding,) = verify_dataset(ours).findings
    assert (finding.sample, finding.fault) == (-1, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is no index of version v1.2"),
        (b"v1.1 1\njpg 512 10\n", "is no index of version v1.2"),
        (b"\xff\xfe\x00", "is no index of version v1.2"),
        (b"v1.2 0\n", "no sample in"),
        (b"v1.2 2\njpg 512 10 a.jpg\n", "announces 2 samples"),
        (b"v1.2 1\njpg 512 10 a.jpg", "announces 1 samples"),
        (b"v1.2 1\njpg 512 10\n", "damaged in line 2"),
        (b"v1.2 1\njpg x 10 a.jpg\n", "damaged in line 2"),
        (b"v1.2 1\n\n", "damaged in line 2"),
        (b"v1.2 2\njpg 512 10 a.jpg\njpg 512 10 a.jpg\n", "two samples of the key 'a'"),
        (b"v1.2 1\njpg 512 10 a.jpg jpg 512 10 a.jpg\n", "an extension of the key 'a' twice"),
        (b"v1.2 1\njpg 513 10 a.jpg\n", "cannot be 10 bytes at byte 513"),
        (b"v1.2 1\njpg 512 0 a.jpg\n", "cannot be 0 bytes at byte 512"),
        (b"v1.2 1\njpg -512 9 a.jpg\n", "damaged in line 2"),
        (b"v1.2 1\njpg 512 999999999 a.jpg\n", "is cut short"),
        (b"v1.2 1\njpg 512 99999999999999999999 a.jpg\n", "damaged in line 2"),
        (b"v1.2 1\njpg 512 10 a.jpg cls 513 1 a.cls\n", "the class of a.jpg cannot be"),
        (
            b"v1.2 1\ntxt 512 10 a.txt\n",
            "the first of 1, x.tar/a, is a sample without an image, only .txt",
        ),
    ],
)
def test_an_index_that_cannot_be_is_named(tmp_path: Path, text: bytes, says: str) -> None:
    write_shard(tmp_path / "s", "x", members(2))
    (tmp_path / "s" / "x.idx").write_bytes(text)
    with pytest.raises(UserError) as error:
        ShardSource(tmp_path / "s")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_that_is_no_number_is_named(tmp_path: Path) -> None:
    image = encoded(photo(0, 20, 20))
    for cls in (b"tench", b"", b"99999999999999999999"):
        write_shard(tmp_path / "s", "x", [("a.jpg", image), ("a.cls", b"3"), ("b.jpg", image), ("b.cls", cls)])
        with pytest.raises(UserError, match=r"b\.jpg|the class of b"):
            ShardSource(tmp_path / "s")
    write_shard(tmp_path / "s", "x", [("a.jpg", image), ("a.cls.i32", b"123")])
    with pytest.raises(UserError, match=r"a\.jpg: its class b'123' is no number"):
        ShardSource(tmp_path / "s")


def test_which_folders_are_shards(foreign: Path, ours: Path, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder(name="classes", train=4, val=0)
    shutil.copy(foreign / "train-0000.tar", folder)
    assert isinstance(open_source(folder), FolderSource)
    for part in (foreign / "train-0000.idx", ours / "shard-000000.tar"):
        with pytest.raises(UserError, match="is one shard: give the folder"):
            open_source(part)
    (tmp_path / "empty").mkdir()
    assert "no image in" in refused(tmp_path / "empty", UserError)
    with pytest.raises(UserError, match="no sample in"):
        ShardSource(tmp_path / "empty")
