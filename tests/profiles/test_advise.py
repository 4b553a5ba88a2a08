"""Advice on a format: what follows from the figures, and that the figures are measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from images import encoded, photo

from fastvicreg.cli import main
from fastvicreg.pipelines import open_source
from fastvicreg.profiles import advice
from fastvicreg.profiles.advice import FORMS, Disk, Machine, Measured

FIGURES = [
    Measured(form, size, rate, 0.01, psnr)
    for form, size, rate, psnr in zip(
        FORMS, (100e3, 50e3, 35e3, 500e3), (400.0, 500.0, 700.0, 2500.0), (math.inf, 38.0, 34.0, 60.0), strict=True
    )
]
IMAGENET = 1_281_167


def machine(
    *, cores: int = 16, memory: float = 1e12, disk: float = 20_000, gpus: int = 1, rate: float = 2200
) -> Machine:
    return Machine(cores, memory, Disk(disk * 100e3, disk, True), gpus, rate)


@pytest.mark.parametrize(
    ("given", "form", "feeds"),
    [
        (machine(), "original bytes", True),
        (machine(cores=5), "500 px, q90", True),
        (machine(cores=4), "400 px, q90", True),
        (machine(cores=2), "500 px, pixels", True),
        (machine(cores=1), "500 px, pixels", True),
        (machine(cores=1, rate=2400), "500 px, pixels", False),
        (machine(cores=1, memory=64e9, disk=1000), "400 px, q90", False),  # pixels would be read from the disk
        (machine(cores=16, memory=64e9, disk=1000), "original bytes", False),  # 1,000 images/s whatever the form
        (machine(cores=16, memory=70e9, disk=1000), "400 px, q90", True),  # 45 GB fit
        (machine(cores=32, gpus=8), "400 px, q90", True),
        (machine(cores=50, gpus=8), "original bytes", True),
    ],
)
def test_the_first_form_that_feeds_the_gpus_is_taken(given: Machine, form: str, *, feeds: bool) -> None:
    best = advice.chosen(advice.judge(given, IMAGENET, FIGURES))
    assert (best.measured.form.name, best.feeds) == (form, feeds)


def test_figures_of_a_verdict_follow_from_what_was_measured() -> None:
    verdicts = advice.judge(machine(cores=8, memory=120e9, disk=1000, gpus=2, rate=2000), IMAGENET, FIGURES)
    originals, _, _, pixels = verdicts
    assert originals.total_bytes == pytest.approx(128.1e9, rel=1e-3)
    assert [one.fits for one in verdicts] == [False, True, True, False]
    assert originals.cores_per_gpu == pytest.approx(5)
    assert originals.images_per_s == 1000  # the disk's
    assert originals.disk_share == pytest.approx(4)
    assert pixels.images_per_s == 200  # five times the bytes an image
    assert verdicts[1].images_per_s == 4000


def test_forms_are_measured_on_the_images_themselves(make_folder: Callable[..., Path]) -> None:
    root = make_folder(train=6, val=0, side=520)
    (root / "class0/broken.jpg").write_bytes(b"\xff\xd8\xff")
    source = open_source(root)
    indices = advice.sampled(source, 40)
    assert sorted(source.name(index) for index in indices) == [f"class{n % 3}/{n:03d}.jpg" for n in (0, 3, 1, 4, 2, 5)]
    forms = advice.measure_forms(source, indices, repeats=1)
    assert forms[0].mean_bytes == sum(len(source.encoded(index)) for index in indices) / 6
    assert forms[0].psnr == math.inf
    assert 30 < forms[2].psnr < forms[1].psnr < forms[3].psnr < math.inf
    assert forms[3].mean_bytes == pytest.approx(3 * 500 * 498, rel=0.02)
    assert forms[3].images_per_core_s > forms[0].images_per_core_s
    disk = advice.measure_disk(source, indices)
    assert disk.bytes_per_s / disk.images_per_s == pytest.approx(forms[0].mean_bytes)


@pytest.mark.parametrize("form", ["folder", "beton", "shards"])
def test_the_command_says_what_to_do_and_why(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    data = make_folder(train=6, val=3)
    if form != "folder":
        assert main(["convert", str(data), str(tmp_path / "out"), "--format", form]) == 0
        data = tmp_path / "out"
    capsys.readouterr()
    line = ["advise", "--data", str(data), "--images-per-s", "10", "--json", str(tmp_path / "a.json")]
    assert main(line) == 0
    text = capsys.readouterr().out
    assert "6 images; 1 GPU" in text
    assert "one GPU takes 10 images/s (as given)" in text
    assert "original bytes: 0.0 cores a GPU do" in text
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["recommended"] for row in rows] == [True, False, False, False]
    assert main([*line[:3], "--images-per-s", "1e9", "--cores", "2"]) == 0
    assert re.search(r"no form feeds 1 GPU: .* comes nearest, .* bound by the cores; ", capsys.readouterr().out)


def test_what_cannot_be_advised_on_is_one_line(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(make_folder(train=3, val=0))
    assert main(["advise", "--data", data, "--gpu", "h1000"]) == 2
    assert "unknown GPU 'h1000'; did you mean 'h100'?" in capsys.readouterr().err
    assert main(["advise", "--data", data, "--gpus", "0"]) == 2
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.jpg").write_bytes(encoded(photo(0, 20, 20))[:40])
    assert main(["advise", "--data", str(tmp_path / "bad")]) == 2
    assert "no readable image among 1 of" in capsys.readouterr().err
