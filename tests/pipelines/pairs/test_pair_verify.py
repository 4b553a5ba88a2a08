"""``verify --pair``: pairs, partners that are missing and members that cannot be decoded, counted by kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paired import captions, shards, sounds

from fastvicreg.cli import main

PAIR = ["--pair", "image", "text"]


def test_whole_pairs_have_no_faults_and_broken_ones_are_named_by_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = captions(tmp_path / "c", 6, 4)
    assert main(["verify", str(data), *PAIR, "--decode"]) == 0
    said = capsys.readouterr().out
    assert "6 pairs of image and text" in said
    assert "4 pairs of image and text" in said
    images, texts = (sorted((data / "train").rglob(f"*.{ending}")) for ending in (images_ending(data), "txt"))
    images[0].write_bytes(images[0].read_bytes()[:200])
    images[1].unlink()
    texts[2].unlink()
    texts[3].write_text("\n")
    assert main(["verify", str(data), *PAIR, "--json", str(tmp_path / "r.json")]) == 1
    said = capsys.readouterr().out
    assert "4 pairs of image and text; not readable: 1 x image, 1 x text" in said
    assert "1 x sample without image (" in said
    assert "1 x sample without text (" in said
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [(row["samples"], row["faults"]) for row in rows] == [(4, 4), (4, 0)]
    for path in (images[0], texts[3]):
        path.unlink()
    assert main(["verify", str(data), *PAIR, "--unpaired", "skip"]) == 0
    assert "not taken: " in capsys.readouterr().out


def images_ending(data: Path) -> str:
    return next(path.suffix for path in (data / "train").rglob("*.*") if path.suffix != ".txt").lstrip(".")


def test_waveforms_and_spectrograms_are_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = sounds(tmp_path / "s", 1, 1)
    command = ["verify", str(data), "--pair", "waveform", "spectrogram"]
    assert main(command) == 0
    assert "6 pairs of waveform and spectrogram" in capsys.readouterr().out
    next((data / "train").rglob("*.wav")).write_bytes(b"RIFF")
    assert main(command) == 1
    assert "5 pairs" not in (said := capsys.readouterr().out)
    assert "not readable: 1 x spectrogram, 1 x waveform" in said


def test_what_is_no_pair_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path / "t", {"0.txt": b"a caption"})
    for options, says in (
        (PAIR, "image"),
        (["--pair", "text"], "give two modalities"),
        (["--unpaired", "skip"], "--unpaired skip goes with --pair"),
        ([*PAIR, "--image", "jpg"], "--image jpg: --pair image text names the members; leave it out."),
    ):
        assert main(["verify", str(tmp_path / "t"), *options]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
