"""Nothing that came with data is executed, whatever reads it, and no name from data becomes part of a page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo
from runs import tiny, train

from fastvicreg.cli import main
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.sources import open_source

NAME = "<img src=x onerror=alert(1)>"
"""Of a class: a folder may be called so."""

WATCHED = """
import sys
from pathlib import Path
from fastvicreg.cli import main

def read(folder, run):
    from fastvicreg.pipelines.sources import open_source
    from fastvicreg.pipelines.decode import decode_sample
    for name in ("data/train", "data.beton", "shards"):
        source = open_source(folder / name)
        decode_sample(source, 0)
    for command in (
        ["verify", str(folder / "data.beton"), "--decode"],
        ["verify", str(folder / "shards"), "--decode"],
        ["eval", "knn", str(run), "--report", str(folder / "report"), "--k", "2"],
        ["eval", "knn", "--features", str(folder / "features.npz"), "--report", str(folder / "report"), "--k", "2"],
        ["trace", "summary", str(folder / "trace.json")],
        ["trace", "summary", str(folder / "large.json")],
        ["train", "--resume", "--out", str(run), "--steps", "3"],
    ):
        code = main(command)
        assert code in (0, 1), (command, code)

folder, run = map(Path, sys.argv[1:])
from fastvicreg.profiles.trace import parallel
parallel.workers_for = lambda path: 2 * (path.name == "large.json")  # as of a file of many megabytes
read(folder, run)  # what is imported and compiled on the way, now is
found = []
def watch(event, arguments):
    if event in ("pickle.find_class", "marshal.loads", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"):
        # numba's own cache of compiled code is a pickle beside the package, and no data; provenance asks git.
        frame, names = sys._getframe(), []
        while frame is not None:
            names.append(frame.f_code.co_filename)
            frame = frame.f_back
        known = ("numba/core/caching.py", "importlib", "provenance.py")
        if event == "subprocess.Popen":  # a large trace has readers of its own
            known += ("trace/parallel.py",)
        if not any(path in name for name in names for path in known):
            found.append((event, arguments, names[:6]))
sys.addaudithook(watch)
read(folder, run)
import pickle
pickle.loads(pickle.dumps(Path))  # the watch sees what it is there for
assert found.pop()[0] == "pickle.find_class"
print("executed:", found)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("security")
    for number in range(24):
        split = "train" if number < 16 else "val"
        path = folder / "data" / split / (NAME if number % 2 else "other") / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number, 30, 40)))
    for name, form in (("data.beton", "beton"), ("shards", "shards")):
        convert_dataset(folder / "data" / "train", folder / name, Settings(format=form))
    features = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    labels = np.arange(20) % 2
    np.savez(
        folder / "features.npz", train_features=features, train_labels=labels, val_features=features, val_labels=labels
    )
    events = [
        {
            "ph": "X",
            "cat": "user_annotation",
            "name": f"ProfilerStep#{step}",
            "pid": 1,
            "tid": 1,
            "ts": 100 * step,
            "dur": 90,
        }
        for step in range(4)
    ]
    (folder / "trace.json").write_text(json.dumps({"traceEvents": events}))
    (folder / "large.json").write_text(json.dumps({"traceEvents": events * 10}))
    train(tiny(folder / "data", epochs=1), folder / "run")
    return folder


@pytest.mark.slow
def test_reading_data_checkpoints_features_and_traces_runs_nothing_of_theirs(folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, str(folder), str(folder / "run")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.splitlines()[-1] == "executed: []"


@pytest.mark.parametrize("name", ["../outside.jpg", "/tmp/outside.jpg", "a/../../outside.jpg"])
def test_a_tar_s_member_with_a_path_that_leads_out_is_read_in_place_and_written_nowhere(
    tmp_path: Path, name: str
) -> None:
    inside = tmp_path / "shards"
    inside.mkdir()
    with tarfile.open(inside / "data-0000.tar", "w") as tar:
        for member, content in ((name, encoded(photo(1, 30, 40))), (name.replace("jpg", "cls"), b"0")):
            information = tarfile.TarInfo(member)
            information.size = len(content)
            tar.addfile(information, BytesIO(content))
    before = {path for path in tmp_path.rglob("*") if "shards" not in path.name}
    source = open_source(inside)
    assert len(source) == 1
    assert main(["convert", str(inside), str(tmp_path / "out.beton")]) == 0
    written = set(tmp_path.rglob("*")) - before
    assert not [path for path in written if "outside" in path.name]
    assert not Path("/tmp/outside.jpg").exists()


@pytest.mark.parametrize("length", [2**63, 2**40, 8])
def test_a_hostile_safetensors_header_is_a_line(
    folder: Path, tmp_path: Path, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hostile.safetensors"
    overlapping = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    header = json.dumps(overlapping | {"b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}).encode()
    path.write_bytes((len(header) if length == 8 else length).to_bytes(8, "little") + header + bytes(24))
    assert main(["eval", "knn", str(path), "--data", str(folder / "data")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(path) in line


@pytest.mark.slow
def test_a_class_s_name_is_text_in_every_page(folder: Path) -> None:
    assert main(["eval", "knn", str(folder / "run"), "--report", str(folder / "pages"), "--k", "2"]) == 0
    assert main(["inspect", str(folder / "run"), "--out", str(folder / "pages" / "inspect.html")]) == 0
    pages = list((folder / "pages").glob("*.html"))
    assert len(pages) == 2
    for page in pages:
        text = page.read_text()
        assert NAME not in text, page
    assert "&lt;img src=x onerror=alert(1)&gt;" in (folder / "pages" / "knn.html").read_text()
