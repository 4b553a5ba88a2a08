"""``fastvicreg convert`` and ``verify`` as a person types them: what they say, their figures, their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fastvicreg.cli import main
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.sources import find_splits
from fastvicreg.show.progress import WalkProgress


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    """24 JPEGs, two of them damaged."""
    root = make_folder(train=24, val=0)
    for name in ("class0/003.jpg", "class1/010.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:-50])
    return root


def test_convert_tells_what_it_wrote_and_skips_are_no_failure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, figures = tmp_path / "x.beton", tmp_path / "figures.json"
    options = ["--page-size", "2", "--max-size", "43", "--quality", "80", "--workers", "2", "--json", str(figures)]
    assert main(["convert", str(folder), str(target), *options]) == 0
    text = capsys.readouterr().out
    source = open_source(target)
    assert len(source) == 22
    assert max(max(source.size(i)) for i in range(22)) == 43
    assert "22 images" in text
    assert "skipped 2" in text
    assert "2 x image file is truncated (class0/003.jpg)" in text
    (row,) = json.loads(figures.read_text())["rows"]
    assert row["images"] == row["kept"] + row["encoded"] == 22
    assert row["kept"] == sum(max(open_source(folder).size(i)) <= 43 for i in range(24)) - 2
    assert [entry["path"] for entry in row["skipped"]] == ["class0/003.jpg", "class1/010.jpg"]
    assert row["mean_bytes"] == sum(len(source.encoded(i)) for i in range(22)) / 22


def test_verify_exits_by_what_it_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, figures = tmp_path / "x.beton", tmp_path / "figures.json"
    main(["convert", str(folder), str(target), "--page-size", "2"])
    assert main(["verify", str(target), "--decode"]) == 0
    assert "0 faults in 22 samples" in capsys.readouterr().out

    data = bytearray(target.read_bytes())
    data[(2 << 20) + 100] ^= 1
    target.write_bytes(data)
    assert main(["verify", str(target), "--json", str(figures)]) == 1
    text = capsys.readouterr().out
    assert "sample 0, class0/000.jpg: the bytes differ from the manifest's hash" in text
    assert "1 faults in 22 samples" in text
    (row,) = json.loads(figures.read_text())["rows"]
    assert (row["faults"], row["findings"][0]["path"]) == (1, "class0/000.jpg")

    assert main(["verify", str(folder)]) == 1
    assert "class1/010.jpg: image file is truncated" in capsys.readouterr().out
    target.write_bytes(bytes(data[:-5]))
    assert main(["verify", str(target)]) == 1
    assert "cut short" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "missing")]) == 2


def test_shards_are_written_verified_and_named_for_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, figures = tmp_path / "x", tmp_path / "figures.json"
    assert main(["convert", str(folder), f"{target}/", "--format", "dali", "--shard-size", "1", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert f"skipped 2, listed in {target}/dataset.manifest:" in text
    assert "2 x image file is truncated (class0/003.jpg)" in text
    assert "one tar file, the samples shuffled" in text
    assert text.splitlines()[-1].startswith(f"next: fastvicreg train --pipeline dali --data {target}   or: ")
    assert len(open_source(target)) == 22
    assert main(["verify", str(target), "--decode"]) == 0
    assert "0 faults in 22 samples" in capsys.readouterr().out

    tar = target / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    name = open_source(target).name(0)
    assert main(["verify", str(target), "--json", str(figures)]) == 1
    assert f"sample 0, {name}: the bytes differ from the manifest's hash" in capsys.readouterr().out
    (row,) = json.loads(figures.read_text())["rows"]
    assert (row["faults"], row["findings"][0]["path"]) == (1, name)
    tar.write_bytes(b"")
    assert main(["verify", str(target)]) == 1
    assert "shard-000000.tar is cut short" in capsys.readouterr().out
    tar.unlink()
    assert main(["verify", str(target)]) == 1
    assert "shard-000000.tar is missing" in capsys.readouterr().out


def test_many_faults_are_counted_and_the_first_shown(
    make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(train=30, val=0)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"\xff\xd8 no image")
    assert main(["verify", str(folder)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("sample ") for line in printed) == 20
    assert "and 10 more" in printed


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--quality", "0"], "--quality 0"),
        (["--page-size", "3"], "--page-size 3"),
        (["--page-size", "-2"], "--page-size -2"),
        (["--proportion", "2"], "--proportion 2"),
        (["--workers", "-1"], "--workers -1"),
        (["--format", "fcv"], "did you mean 'ffcv'"),
        (["--format", "dalli"], "did you mean 'dali'"),
        (["--format", "dali"], "ends in .beton, and shards are written into a folder: name it x"),
        (["--format", "dali", "--raw"], "--raw: shards hold JPEGs"),
        (["--shard-size", "8"], "--shard-size 8: a .beton is one file"),
        (["--max-sise", "3"], "did you mean --max-size"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, options: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(folder), str(tmp_path / "x.beton"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert names in line
    assert not list(tmp_path.glob("x.*"))


def test_interrupted_by_the_keyboard_it_says_how_to_continue(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.beton"
    # The interrupt comes from inside, after a known sample: no waiting for the right moment.
    code = (
        "import os, signal, sys; from fastvicreg.show.progress import WalkProgress\n"
        "from fastvicreg.cli import main\n"
        "real = WalkProgress.update\n"
        "def update(self, done, *rest):\n"
        "    real(self, done, *rest)\n"
        "    if done == 9: os.kill(os.getpid(), signal.SIGINT)\n"
        "WalkProgress.update = update\n"
        "sys.exit(main(['convert', *sys.argv[1:], '--page-size', '2']))"
    )
    command = [sys.executable, "-c", code, str(folder), str(target)]
    # A shell's background job ignores SIGINT, and so would its child.
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ},
    )
    assert ran.returncode == 130, ran.stderr
    assert "the same command continues" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not target.exists()
    assert main(["convert", str(folder), str(target), "--page-size", "2"]) == 0
    assert len(open_source(target)) == 22


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_rate_and_time_left(tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("fastvicreg.show.progress.time.monotonic", lambda: now[0])
    with (tmp_path / "out").open("w+") as file:
        console = Console(file=file, force_terminal=terminal, width=120)
        with WalkProgress("converting", "skipped", console) as progress:
            for done in range(50, 151):  # 49 were done by an earlier run
                now[0] += 0.5
                progress.update(done, 1000, done * 1_000_000, 3)
        file.seek(0)
        text = file.read()
    assert "2 images/s" in text
    assert "2 MB/s" in text
    assert "3 skipped" in text
    if not terminal:
        assert len(text.splitlines()) == 5
        assert text.splitlines()[-1].startswith("converting 150 of 1,000")
        assert "425 s left" in text.splitlines()[-1]


def test_splits_are_never_mixed_into_one_file(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder()
    assert main(["convert", str(data), str(tmp_path / "all.beton")]) == 2
    line = capsys.readouterr().err
    assert "train/ and val/" in line
    assert f"such as {tmp_path / 'all'}-beton" in line
    assert line.count("\n") == 1
    assert not list(tmp_path.glob("all*"))


@pytest.mark.parametrize(("format", "ending"), [("ffcv", ".beton"), ("dali", "")])
def test_each_split_is_converted_and_the_folder_is_trained_on(
    format: str, ending: str, make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, target, figures = make_folder(train=24, val=6), tmp_path / "converted", tmp_path / "figures.json"
    command = ["convert", str(data), str(target), "--format", format]
    assert main([*command, "--json", str(figures)]) == 0
    text = capsys.readouterr().out
    assert f"splits of {data}: train, val" in text
    assert f"{target / 'train'}{ending}: 24 images, 3 classes" in text
    assert f"{target / 'val'}{ending}: 6 images, 3 classes" in text
    assert f"next: fastvicreg train --pipeline {format} --data {target}   or: fastvicreg verify {target}" in text
    assert [row["images"] for row in json.loads(figures.read_text())["rows"]] == [24, 6]
    train, validation = find_splits(target)
    assert validation is not None
    assert (len(open_source(train)), len(open_source(validation))) == (24, 6)
    assert main(["verify", str(target)]) == 0
    assert capsys.readouterr().out.count("0 faults in") == 2
    assert main(command) == 2
    assert "holds train, val already" in capsys.readouterr().err


def test_a_split_that_is_complete_is_not_converted_again(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, target = make_folder(train=24, val=6), tmp_path / "converted"
    target.mkdir()
    assert main(["convert", str(data / "train"), str(target / "train.beton")]) == 0
    before = (target / "train.beton").stat().st_mtime_ns
    assert main(["convert", str(data), str(target)]) == 0
    assert f"{target / 'train.beton'} is there already, complete" in capsys.readouterr().out
    assert (target / "train.beton").stat().st_mtime_ns == before
    (target / "val.beton").unlink()
    assert main(["convert", str(data), str(target), "--max-size", "20"]) == 2  # other settings: not the same file
    assert f"{target / 'train.beton'} exists" in capsys.readouterr().err


def test_splits_are_not_written_into_their_own_folder(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder()
    for target, says in ((data / "out", "inside its own source"), (tmp_path / "no" / "out", "does not exist")):
        assert main(["convert", str(data), str(target)]) == 2
        assert says in capsys.readouterr().err
        assert not target.exists()


@pytest.mark.slow
def test_names_that_are_no_text_are_shown_escaped(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    root = make_folder(train=2, val=0, classes=1)
    (root / "class0" / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    for command in (["convert", str(root), str(tmp_path / "x.beton")], ["verify", str(root)]):
        code = "import sys; from fastvicreg.cli import main; sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
        ran = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120, env=environment
        )
        assert "Traceback" not in ran.stderr
        assert "class0/\\udcff.jpg" in ran.stdout
