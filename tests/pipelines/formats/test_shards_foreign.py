"""Tar files as others make them: no index, other image types, samples without an image, classes by name or by tar."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from images import encoded, photo
from tars import Member, index_by_tarfile, members, write_shard, write_tar

from fastvicreg.contracts import Cursor
from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.formats.shards import index as shard_index
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.plan import eval_plan
from fastvicreg.pipelines.verify import verify_dataset

JPEG = encoded(photo(0, 24, 20))


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where walks are kept."""
    monkeypatch.setattr(shard_index, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(shard_index, "WORTH_KEEPING", 1)
    return tmp_path / "cache" / "indices"


def samples(source: ShardSource) -> list[tuple[bytes, int, str]]:
    return [(bytes(source.encoded(i)), source.label(i), source.name(i)) for i in range(len(source))]


def shards_of(path: Path) -> ShardSource:
    source = open_source(path)
    assert isinstance(source, ShardSource)
    return source


def test_names_that_are_not_ascii_are_read_without_an_index(tmp_path: Path, caches: Path) -> None:
    names = ["crème/é-0.jpg", "crème/\udcff-1.jpg"]
    write_tar(tmp_path / "y.tar", [(name, JPEG) for name in names], tarfile.GNU_FORMAT)
    for kept in range(2):  # the second time from what the first has kept
        assert len(list(caches.glob("*"))) == kept
        assert [name for _, _, name in samples(shards_of(tmp_path / "y.tar"))] == [f"y.tar/{name}" for name in names]


def test_a_class_that_is_no_number_any_more_is_a_finding(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", "y", [("a.jpg", JPEG), ("a.cls.i32", b"\7\0\0\0"), ("a.cls", b"seven")])
    assert shards_of(tmp_path / "x").classes == ()  # 7 of one sample is no class's number
    found = verify_dataset(tmp_path / "x").findings
    assert [finding.fault for finding in found] == [
        "its .cls is invalid literal for int() with base 10: b'seven', recorded is 7"
    ]


def test_a_size_that_leads_backwards_ends_the_walk(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    for back in (-512, -2048, -(1 << 40)):
        write_tar(path, [("a.jpg", JPEG), ("b.jpg", JPEG)])
        data = bytearray(path.read_bytes())
        at = 512 + -(-len(JPEG) // 512) * 512
        data[at + 124 : at + 136] = b"\xff" * 4 + back.to_bytes(8, "big", signed=True)
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        path.write_bytes(data)
        with pytest.raises(DamagedError, match=rf"is damaged after byte {at}: b\.jpg is said to have {back} bytes"):
            shards_of(path)
        index = tmp_path / "x.idx"
        index.write_text(f"v1.2 1\njpg 512 {len(JPEG)} a.jpg\n")  # what it leaves out is looked for by verify
        faults = [finding.fault for finding in verify_dataset(tmp_path).findings]
        assert faults == [f"{path}: the 512 bytes at {at} are no tar header"]
        index.unlink()


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", JPEG)])
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[156:157] = tarfile.GNUTYPE_SPARSE
    data[483:495] = b"%011o\0" % len(JPEG)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.jpg is a sparse member, which is not read: pack it without -S\."):
        shards_of(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_without_an_index_the_samples_are_those_of_one_with(tmp_path: Path, kind: int, caches: Path) -> None:
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    (tmp_path / "without").mkdir()
    for number in range(2):
        entries = members(4, 4 * number)
        write_shard(tmp_path / "with", f"x-{number}", entries, kind)
        others: list[Member] = [("folder/.hidden.jpg", JPEG), ("README", b"text")]
        write_tar(tmp_path / "without" / f"x-{number}.tar", [folder, *entries, *others], kind)
    expected = samples(shards_of(tmp_path / "with"))
    first = shards_of(tmp_path / "without")
    assert samples(first) == expected
    assert len(list(caches.iterdir())) == 2
    again = shards_of(tmp_path / "without")
    assert samples(again) == samples(first)
    assert not verify_dataset(tmp_path / "without", decode=True).findings


def test_a_walk_is_never_taken_for_another_file(tmp_path: Path, caches: Path) -> None:
    tar = tmp_path / "s" / "x.tar"
    tar.parent.mkdir()
    write_tar(tar, members(3))
    assert len(shards_of(tar.parent)) == 3
    write_tar(tar, members(5))
    assert len(shards_of(tar.parent)) == 5
    for kept in caches.iterdir():
        kept.write_bytes(kept.read_bytes()[:-5])  # a cut one is made anew
    assert len(shards_of(tar.parent)) == 5


def test_what_walking_took_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "WORTH_TELLING", 12)
    for at in range(2):
        write_tar(tmp_path / f"{at}.tar", members(6, 6 * at))
    (note,) = shards_of(tmp_path).notes
    assert "2 tar files without an index were walked: 36 headers in" in note
    assert "(3,000 reads and" in note
    assert shards_of(tmp_path).notes == ()


@pytest.mark.parametrize("place", ["x.idx", "x.tar.idx", "idx/x.idx", "index/x.idx"])
def test_an_index_is_found_where_people_put_it(tmp_path: Path, place: str, caches: Path) -> None:
    write_shard(tmp_path / "s", "x", members(3))
    target = tmp_path / "s" / place
    target.parent.mkdir(exist_ok=True)
    shutil.move(tmp_path / "s/x.idx", target)
    source = ShardSource(tmp_path / "s")
    assert source.layout.files == ((tmp_path / "s/x.tar", target),)
    assert len(source) == 3
    assert not caches.exists()


def test_our_own_shards_are_read_without_their_indices(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    convert_dataset(make_folder(train=40, val=0), tmp_path / "o", Settings(format="dali", shard_size=20 << 10))
    expected = samples(shards_of(tmp_path / "o"))
    for index in (tmp_path / "o").glob("*.idx"):
        index.unlink()
    assert samples(shards_of(tmp_path / "o")) == expected  # by the manifest's own hash of the indices


def test_members_in_any_order_make_whole_samples(tmp_path: Path) -> None:
    images: list[Member] = [(f"{n}.jpg", encoded(photo(n, 20, 20))) for n in range(4)]
    (tmp_path / "s").mkdir()
    write_tar(tmp_path / "s/x.tar", [*images, *((f"{n}.cls", str(n % 2).encode()) for n in range(4))])
    assert [(data, label) for data, label, _ in samples(shards_of(tmp_path / "s"))] == [
        (data, n % 2) for n, (_, data) in enumerate(images)
    ]


def test_a_sample_without_an_image_is_left_out_and_counted(tmp_path: Path) -> None:
    png = encoded(photo(5, 30, 20), "PNG")
    entries: list[Member] = []
    for number in range(6):
        image = {2: [], 4: [("4.png", png)]}.get(number, [(f"{number}.jpg", JPEG)])
        entries += [*image, (f"{number}.cls", b"1"), (f"{number}.txt", b"a dog")]
    for name, index in (("indexed", True), ("walked", False)):
        write_shard(tmp_path / name, "x", entries)
        if not index:
            (tmp_path / name / "x.idx").unlink()
        source = shards_of(tmp_path / name)
        assert len(source) == 5
        assert bytes(source.encoded(3)) == png
        assert source.passed.lines() == ["1 x sample without an image, only .cls, .txt (x.tar/2)"]
        report = verify_dataset(tmp_path / name, decode=True)
        assert (report.findings, report.notes) == ((), (f"not taken: {source.passed.lines()[0]}",))
        summary = convert_dataset(tmp_path / name, tmp_path / f"{name}.beton")
        assert (summary.images, summary.kept, summary.encoded) == (5, 4, 1)
        assert any("sample without an image" in note for note in summary.notes)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_images_of_other_types_are_read(tmp_path: Path, kind: str) -> None:
    ending = kind.lower()
    write_shard(tmp_path / "s", "x", [(f"{n}.{ending}", encoded(photo(n, 30, 20), kind)) for n in range(3)])
    source = shards_of(tmp_path / "s")
    engine = build_engine("native", source, eval_plan(3, resize=16, crop=16), batch_size=3, workers=1)
    (crops,) = engine.batches(Cursor(0, 0))
    engine.close()
    assert crops.fault_B.tolist() == [0, 0, 0]
    assert source.size(0) == (30, 20)


def test_the_keys_of_hugging_face_are_read(tmp_path: Path) -> None:
    entries: list[Member] = []
    for n in range(3):
        entries += [(f"{n}.mask.txt", b"x"), (f"{n}.image.jpg", JPEG), (f"{n}.label.cls", str(n).encode())]
    write_shard(tmp_path / "s", "x", entries)
    assert [label for _, label, _ in samples(shards_of(tmp_path / "s"))] == [0, 1, 2]


def test_classes_may_be_names(tmp_path: Path) -> None:
    entries: list[Member] = []
    for n, name in enumerate((b"tench", b"goldfish\n", b"tench")):
        entries += [(f"{n}.jpg", JPEG), (f"{n}.cls", name)]
    write_shard(tmp_path / "s", "x", entries)
    source = shards_of(tmp_path / "s")
    assert source.classes == ("goldfish", "tench")
    assert [source.label(i) for i in range(3)] == [1, 0, 1]
    assert not verify_dataset(tmp_path / "s").findings


def test_folders_of_shards_are_one_dataset(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "s" / f"{number:02d}").mkdir(parents=True)
        write_tar(tmp_path / "s" / f"{number:02d}" / f"x-{number}.tar", members(2, 2 * number))
    (tmp_path / "s" / "_tmp").mkdir()
    source = shards_of(tmp_path / "s")
    assert [name for _, _, name in samples(source)] == [f"x-{n // 2}.tar/{n:05d}.jpg" for n in range(6)]


def class_tar(name: str, count: int) -> bytes:
    """A tar file of one class, as ImageNet's training data has them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"{name}_{number}.JPEG")
            data = encoded(photo(number, 20, 20))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_imagenets_class_tars_and_the_tar_of_them_are_sources(tmp_path: Path) -> None:
    classes = {"n02": class_tar("n02", 2), "n01": class_tar("n01", 3)}
    (tmp_path / "tars").mkdir()
    for name, content in classes.items():
        (tmp_path / "tars" / f"{name}.tar").write_bytes(content)
    outer = tmp_path / "ILSVRC2012_img_train.tar"
    write_tar(outer, [(f"{name}.tar", content) for name, content in classes.items()])
    for path in (tmp_path / "tars", outer):
        source = shards_of(path)
        assert source.classes == ("n01", "n02")
        found = sorted((name, label) for _, label, name in samples(source))
        assert found == [(f"n01.tar/n01_{n}.JPEG", 0) for n in range(3)] + [
            (f"n02.tar/n02_{n}.JPEG", 1) for n in range(2)
        ]
        assert not verify_dataset(path, decode=True).findings
    summary = convert_dataset(outer, tmp_path / "train.beton")
    assert (summary.images, summary.classes) == (5, 2)
    single = tmp_path / "val.tar"
    single.write_bytes(class_tar("ILSVRC2012_val", 4))
    assert (len(shards_of(single)), shards_of(single).classes) == (4, ())


@pytest.mark.parametrize("cut", [512 * 3 + 100, 512 * 4 + 100])
def test_a_cut_tar_file_without_an_index_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "s").mkdir()
    write_tar(tmp_path / "s/x.tar", members(3))
    data = (tmp_path / "s/x.tar").read_bytes()
    (tmp_path / "s/x.tar").write_bytes(data[:cut])
    with pytest.raises(DamagedError, match=r"x\.tar is (cut short|damaged)"):
        open_source(tmp_path / "s")
    assert verify_dataset(tmp_path / "s").findings[0].sample == -1


def test_garbage_between_members_is_not_taken_for_the_end(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_tar(tmp_path / "s/x.tar", members(3))
    index_by_tarfile(tmp_path / "s/x.tar", tmp_path / "x.idx")
    at = int((tmp_path / "x.idx").read_text().splitlines()[2].split()[1]) - 512
    data = bytearray((tmp_path / "s/x.tar").read_bytes())
    data[at : at + 512] = bytes(range(256)) * 2
    (tmp_path / "s/x.tar").write_bytes(data)
    with pytest.raises(DamagedError, match=f"damaged: the 512 bytes at {at} are no tar header|damaged after byte {at}"):
        open_source(tmp_path / "s")


@pytest.mark.parametrize(("name", "tool"), [("x.tar.gz", "gunzip"), ("x.tgz", "gunzip"), ("x.tar.zst", "unzstd")])
def test_compressed_tar_files_name_the_way_out(tmp_path: Path, name: str, tool: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(b"\x1f\x8b")
    for path in (tmp_path / "s", tmp_path / "s" / name):
        with pytest.raises(UserError, match=rf"{tool} .*{name}.* fastvicreg convert"):
            open_source(path)
