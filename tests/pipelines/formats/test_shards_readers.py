"""Our shards in other people's readers, and theirs in ours: DALI's, its wds2idx and the webdataset library."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from images import encoded, photo
from tars import index_with_wds2idx, members, write_tar

from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.verify import verify_dataset

# In its own process: a fault inside DALI ends the one it is in.
READ = """
import glob, json, sys
import numpy as np
from nvidia.dali import fn, pipeline_def, types

@pipeline_def(batch_size=int(sys.argv[2]), num_threads=1, device_id=None)
def read(tars, indices):
    return tuple(fn.readers.webdataset(
        paths=tars, index_paths=indices, ext=["jpg", "cls", "cls.i32"],
        dtypes=[types.UINT8, types.UINT8, types.INT32], missing_component_behavior="error",
    ))

tars = sorted(glob.glob(sys.argv[1] + "/*.tar"))
pipe = read(tars, [tar[:-4] + ".idx" for tar in tars])
pipe.build()
images, texts, labels = pipe.run()
print(json.dumps([
    [bytes(np.asarray(images.at(i))).hex(), bytes(np.asarray(texts.at(i))).decode(), int(np.asarray(labels.at(i))[0])]
    for i in range(len(images))
]))
"""


@pytest.fixture(params=["classes", "flat"])
def ours(request: pytest.FixtureRequest, make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """Shards with classes, and without, where every label is -1."""
    folder = make_folder(train=30, val=0)
    if request.param == "flat":
        for path in folder.rglob("*.jpg"):
            path.rename(folder / path.name)
    convert_dataset(folder, tmp_path / "ours", Settings(format="dali", shard_size=20 << 10))
    return tmp_path / "ours"


def test_dali_reads_our_shards(ours: Path) -> None:
    pytest.importorskip("nvidia.dali")
    source = ShardSource(ours)
    command = [sys.executable, "-c", READ, str(ours), str(len(source))]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert ran.returncode == 0, ran.stderr[-2000:]
    read = json.loads(ran.stdout.splitlines()[-1])
    expected = [[source.encoded(i).hex(), str(source.label(i)), source.label(i)] for i in range(len(source))]
    assert read == expected


def test_the_webdataset_library_reads_our_shards(ours: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    source = ShardSource(ours)
    tars = [str(tar) for tar, _ in source.layout.files]
    read = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in read] == [f"{number:09d}" for number in range(len(source))]
    assert [sample["jpg"] for sample in read] == [bytes(source.encoded(i)) for i in range(len(source))]
    assert [int(sample["cls"]) for sample in read] == [source.label(i) for i in range(len(source))]
    decoded = [sample["cls"] for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode()]
    assert decoded == [source.label(i) for i in range(len(source))]


def test_wds2idx_makes_the_same_index(ours: Path, tmp_path: Path) -> None:
    pytest.importorskip("wds2idx")
    files = ShardSource(ours).layout.files
    assert len(files) > 2
    for tar, index in files:
        assert index is not None
        index_with_wds2idx(tar, tmp_path / "its.idx")
        assert filecmp.cmp(index, tmp_path / "its.idx", shallow=False)


def test_shards_of_the_webdataset_library_are_read(tmp_path: Path) -> None:
    """Its times are fractions, which PAX puts into a header of its own before every member."""
    webdataset = pytest.importorskip("webdataset")
    pytest.importorskip("wds2idx")
    images = [encoded(photo(n, 30 + n, 20)) for n in range(4)]
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, image in enumerate(images):
            writer.write({"__key__": f"s{number}", "jpg": image, "cls": number, "json": {"n": number}})
    index_with_wds2idx(tmp_path / "a.tar", tmp_path / "a.idx")
    source = ShardSource(tmp_path)
    assert [bytes(source.encoded(i)) for i in range(4)] == images
    assert [source.label(i) for i in range(4)] == [0, 1, 2, 3]
    assert source.classes == ("0", "1", "2", "3")
    assert not verify_dataset(tmp_path, decode=True).findings


def test_long_names_that_wds2idx_misplaces_are_refused_not_misread(tmp_path: Path) -> None:
    """Of a GNU long name it gives the place of the name instead of the member's bytes."""
    pytest.importorskip("wds2idx")
    entries = [("d" * 120 + name, data) for name, data in members(2)]
    write_tar(tmp_path / "a.tar", list(entries), tarfile.GNU_FORMAT)
    index_with_wds2idx(tmp_path / "a.tar", tmp_path / "a.idx")
    with pytest.raises(ValueError, match=r"is not the index of a\.tar"):
        ShardSource(tmp_path)
