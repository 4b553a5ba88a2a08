"""Parquet and arrow files of images: which columns count, what convert makes of them, and in how much memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from images import encoded, photo
from tables import hub_table, image, write_arrow, write_parquet
from tars import members, write_tar

from fastvicreg.cli import main
from fastvicreg.contracts import Cursor
from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.formats.tables.source import TableSource
from fastvicreg.pipelines.formats.tables.window import Window
from fastvicreg.pipelines.manifest import manifest_path, read_manifest
from fastvicreg.pipelines.plan import eval_plan
from fastvicreg.pipelines.sources import splits_of
from fastvicreg.pipelines.verify import verify_dataset

NAMES = ["zebra", "yak", "ant"]


def table_at(path: Path, **keys: str) -> TableSource:
    source = open_source(path, sequential=True, **keys)
    assert isinstance(source, TableSource)
    return source


def samples(source: TableSource) -> list[tuple[bytes, int]]:
    return [(bytes(source.encoded(index)), source.label(index)) for index in range(len(source))]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The layout of a hub's dataset: data/ with two files of train and one of validation."""
    for at, numbers in enumerate((range(7), range(7, 12))):
        write_parquet(tmp_path / f"hub/data/train-0000{at}-of-00002.parquet", hub_table(numbers, NAMES), 3)
    write_parquet(tmp_path / "hub/data/validation-00000-of-00001.parquet", hub_table(range(20, 24), NAMES))
    (tmp_path / "hub/README.md").write_text("a dataset")
    return tmp_path / "hub"


def test_a_hub_s_splits_become_betons_with_the_schema_s_classes(hub: Path, tmp_path: Path) -> None:
    assert [part.name for part in splits_of(hub).parts] == ["train", "validation"]
    assert main(["convert", str(hub), str(tmp_path / "out")]) == 0
    for split, numbers in (("train", range(12)), ("validation", range(20, 24))):
        target = tmp_path / f"out/{split}.beton"
        manifest, source = read_manifest(manifest_path(target)), open_source(target)
        assert source.classes == tuple(NAMES)  # the schema's order, which is not the alphabet's
        assert manifest.label_N.tolist() == [n % 3 for n in numbers]
        assert [path.rpartition("/")[2] for path in manifest.paths] == [f"n{n:03d}.jpg" for n in numbers]
        kept = [at for at, n in enumerate(numbers) if n % 5 != 4]
        assert [bytes(source.encoded(at)) for at in kept] == [image(numbers[at]) for at in kept]


def test_shuffled_shards_are_those_of_the_same_images_in_a_folder_of_arrow_files(hub: Path, tmp_path: Path) -> None:
    write_arrow(tmp_path / "a/train-00000-of-00002.parquet.arrow", hub_table(range(7), NAMES))
    write_arrow(tmp_path / "a/train-00001-of-00002.parquet.arrow", hub_table(range(7, 12), NAMES))
    pattern = hub / "data" / "train-*.parquet"
    for source, name in ((pattern, "p"), (tmp_path / "a", "q")):
        convert_dataset(source, tmp_path / name, Settings(format="shards"))
    assert (tmp_path / "p/shard-000000.tar").read_bytes() == (tmp_path / "q/shard-000000.tar").read_bytes()
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "dataset.manifest",
        "shard-000000.idx",
        "shard-000000.tar",
    ]
    assert not (tmp_path / "p.partial").exists()


def test_an_interrupted_conversion_goes_on_with_the_images_written_out(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, settings = hub / "data" / "train-*.parquet", Settings(format="shards")
    convert_dataset(pattern, tmp_path / "whole", settings)

    def stop(progress: object) -> None:
        if progress.done == 5:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_dataset(pattern, tmp_path / "out", settings, on_progress=stop, workers=1)
    assert (tmp_path / "out.partial/spool.ends").is_file()
    monkeypatch.setattr(TableSource, "image_bytes", lambda self, index: pytest.fail("read again"))
    assert convert_dataset(pattern, tmp_path / "out", settings).resumed == 5
    assert (tmp_path / "out/shard-000000.tar").read_bytes() == (tmp_path / "whole/shard-000000.tar").read_bytes()


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files_are_trained_on_as_they_are(tmp_path: Path, *, stream: bool) -> None:
    for split, numbers in (("train", range(9)), ("test", range(30, 33))):
        write_arrow(tmp_path / f"d/{split}/data-00000-of-00001.arrow", hub_table(numbers, NAMES), stream=stream)
        (tmp_path / f"d/{split}/state.json").write_text("{}")
    write_arrow(tmp_path / "d/train/cache-1234.arrow", hub_table(range(2), NAMES))
    found = splits_of(tmp_path / "d")
    assert [part.name for part in found.parts] == ["train", "test"]
    source = open_source(found.train)
    assert len(source) == 9
    engine = build_engine("native", source, eval_plan(9, resize=16, crop=16), batch_size=9, workers=2)
    (crops,) = engine.batches(Cursor(0, 0))
    engine.close()
    assert crops.fault_B.tolist() == [0] * 9
    assert crops.label_B.tolist() == [n % 3 for n in range(9)]


def test_parquet_without_convert_names_the_way_out(hub: Path) -> None:
    with pytest.raises(UserError, match=r"give no fast access to one image by itself: fastvicreg convert .*train"):
        open_source(hub / "data" / "train-*.parquet")
    assert not verify_dataset(hub / "data" / "train-*.parquet", decode=True).findings


@pytest.mark.parametrize(
    ("columns", "keys", "classes", "labels"),
    [
        ({}, {}, ("0", "1", "2"), [0, 1, 2]),
        ({"label": ["b", "a", "b"]}, {}, ("a", "b"), [1, 0, 1]),
        ({"label": pa.array(["b", "a", "b"]).dictionary_encode()}, {}, ("a", "b"), [1, 0, 1]),
        ({"label": ["10", "2", "10"]}, {}, tuple(map(str, range(11)))[:0], [10, 2, 10]),
        ({"label": [-1, -1, -1]}, {}, (), [-1, -1, -1]),
        ({"label": [0, None, 1]}, {}, ("0", "1"), [0, -1, 1]),
        ({"label": [[0], [1], [2]]}, {}, (), [-1, -1, -1]),
        ({"fine": ["x", "y", "x"]}, {"label": "fine"}, ("x", "y"), [0, 1, 0]),
    ],
)
def test_labels_of_many_kinds(
    tmp_path: Path, columns: dict, keys: dict[str, str], classes: tuple[str, ...], labels: list[int]
) -> None:
    source = table_at(write_parquet(tmp_path / "t.parquet", hub_table(range(3), None, **columns)), **keys)
    assert source.classes == classes
    assert [source.label(index) for index in range(3)] == labels


def test_columns_are_found_by_kind_and_name_or_refused(tmp_path: Path) -> None:
    data = [image(n) for n in range(3)]
    plain = pa.table({"key": ["a", "b", "c"], "jpg": data, "target": [1, 0, 1]})
    source = table_at(write_parquet(tmp_path / "img2dataset.parquet", plain))
    assert [found for found, _ in samples(source)] == data
    assert source.notes == (f"{tmp_path}/img2dataset.parquet: the labels are the column 'target'",)
    assert source.name(1) == "img2dataset.parquet/1"
    two = write_parquet(tmp_path / "two.parquet", pa.table({"left": data, "right": data[::-1]}))
    with pytest.raises(UserError, match="has the columns left, right: name one by --image"):
        table_at(two)
    assert bytes(table_at(two, image="right").encoded(0)) == data[2]
    with pytest.raises(UserError, match=r"--image top: .* has no column of bytes of that name, only left, right"):
        table_at(two, image="top")
    with pytest.raises(UserError, match=r"--label top: .* has no column of numbers or text of that name, only none"):
        table_at(two, image="left", label="top")
    links = write_parquet(tmp_path / "links.parquet", pa.table({"url": ["http://x"], "text": ["y"]}))
    with pytest.raises(UserError, match="no column of bytes among url, text: its images are elsewhere"):
        table_at(links)


def test_rows_without_an_image_are_skipped_and_those_without_the_named_label_left_out(tmp_path: Path) -> None:
    data = [None if n == 1 else image(n) for n in range(6)]
    table = pa.table({"image": pa.array([d and {"bytes": d} for d in data]), "y": [0, 1, None, 1, 0, 1]})
    path = write_parquet(tmp_path / "t.parquet", table, 2)
    summary = convert_dataset(path, tmp_path / "x.beton", Settings(label="y"))
    assert summary.images == 4
    assert [(entry.path, entry.reason) for entry in summary.skipped] == [
        ("t.parquet/1", "the row has no bytes in its column image")
    ]
    assert "not taken: 1 x row whose y is empty (t.parquet/2)" in summary.notes
    assert read_manifest(manifest_path(tmp_path / "x.beton")).label_N.tolist() == [0, 1, 0, 1]
    empty = write_parquet(tmp_path / "z.parquet", table.append_column("z", pa.array([None] * 6, pa.int64())))
    with pytest.raises(UserError, match=r"no row in .* has a z"):
        table_at(empty, label="z")


def test_damaged_and_differing_files_are_named(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "d/a.parquet", hub_table(range(40), NAMES), 10, "none")
    bad = tmp_path / "d/b.parquet"
    bad.write_bytes(good.read_bytes()[:-20])
    with pytest.raises(DamagedError, match=r"b\.parquet is cut short or damaged"):
        table_at(tmp_path / "d")
    assert verify_dataset(tmp_path / "d").findings[0].sample == -1
    write_parquet(bad, hub_table(range(2), ["other", "names", "here"]))
    with pytest.raises(UserError, match=r"a\.parquet and .*b\.parquet differ in the columns"):
        table_at(tmp_path / "d")
    bad.unlink()
    content = bytearray(good.read_bytes())
    at = content.index(image(25)) + 5
    content[at - 400 : at] = bytes(400)  # a page's header among it
    good.write_bytes(content)
    source = table_at(good)
    assert bytes(source.encoded(35)) == image(35)  # behind the damage
    with pytest.raises(OSError, match="row group 2 is damaged after row 20"):
        source.encoded(29)
    summary = convert_dataset(good, tmp_path / "x.beton")
    assert [entry.path for entry in summary.skipped] == [f"a.parquet/n{n:03d}.jpg" for n in range(20, 30)]
    assert "row group 2 is damaged after row 20" in summary.skipped[0].reason
    assert summary.images == 30


def test_shards_with_parquet_beside_are_shards(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "i").mkdir(exist_ok=True)
        write_tar(tmp_path / f"i/0000{number}.tar", members(2, 2 * number))
        write_parquet(tmp_path / f"i/0000{number}.parquet", pa.table({"key": ["a", "b"], "caption": ["x", "y"]}))
        (tmp_path / f"i/0000{number}_stats.json").write_text("{}")
    (tmp_path / "i/_tmp").mkdir()
    write_parquet(tmp_path / "i/_tmp/0.feather.parquet", pa.table({"url": ["x"]}))
    source = open_source(tmp_path / "i")
    assert isinstance(source, ShardSource)
    assert len(source) == 4


def test_img2dataset_s_parts_are_no_classes(tmp_path: Path) -> None:
    for part in ("00000", "00001"):
        (tmp_path / "i" / part).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "i" / part / f"{part}{number}.jpg").write_bytes(encoded(photo(number, 20, 20)))
        write_parquet(tmp_path / f"i/{part}.parquet", pa.table({"key": ["a"]}))
    source = open_source(tmp_path / "i")
    assert (len(source), source.classes, source.label(3)) == (4, (), -1)
    assert source.notes == (f"{tmp_path}/i: img2dataset's parts are no classes: no labels",)  # type: ignore[attr-defined]


def test_a_window_reads_forwards_and_again_where_it_must() -> None:
    starts: list[int] = []

    def batches(first: int):  # type: ignore[no-untyped-def]
        starts.append(first)
        for start in range(first // 10 * 10, 100, 10):
            yield start, list(range(start, start + 10))

    window = Window(batches, rows=20)
    assert [window[row] for row in (0, 5, 35, 22, 99)] == [0, 5, 35, 22, 99]
    assert starts == [0]
    assert [window[3], window[4]] == [3, 4]
    assert starts == [0, 3]
    with pytest.raises(IndexError):
        window[100]


MEASURED = """
import re, sys
from pathlib import Path
from fastvicreg.pipelines.convert import convert_dataset
import fastvicreg.pipelines.formats.tables.source
def peak():  # getrusage's would begin with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
convert_dataset(sys.argv[1], sys.argv[2], workers=2)
print(peak() - before)
"""


@pytest.mark.slow
def test_a_row_group_larger_than_a_window_is_streamed(tmp_path: Path) -> None:
    photograph = encoded(photo(0, 30, 20))
    padded = [photograph + bytes([n % 251]) * (40_000 - n) for n in range(12_000)]
    path = write_parquet(tmp_path / "t.parquet", pa.table({"image": padded, "label": [0, 1] * 6000}), 12_000, "none")
    line = (sys.executable, "-c", MEASURED, str(path), str(tmp_path / "x.beton"))
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 420  # 340 for any number of rows; these take 480 by themselves
