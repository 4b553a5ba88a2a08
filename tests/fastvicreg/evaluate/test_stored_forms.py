"""A run on other forms of its data: bench fidelity, and --robustness sets in tar shards whose members are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tars import write_tar

from fastvicreg.cli import main
from fastvicreg.pipelines import open_source

Answer = Callable[..., tuple[int, str]]


def test_forms_that_lose_nothing_change_nothing(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = uninterrupted
    out = tmp_path / "figures.json"
    line = ["bench", "fidelity", "--run", str(run), "--size", "16", "--workers", "1", "--json", str(out)]
    assert main([*line, "--data", str(data)]) == 0
    first, *others = json.loads(out.read_text())["rows"]
    pixels = others[-1]
    for row in (first, pixels):  # the images are smaller than 500: their pixels are stored as they are
        assert (row["difference"], row["changed"], row["neighbours"]) == (0, 0, 100)
        assert row["cosine"] == pytest.approx(1, abs=1e-5)
    again = others[0]
    assert again["images"] == first["images"] == 35
    assert again["cosine"] < first["cosine"]
    assert again["mean_bytes"] != first["mean_bytes"]
    assert again["difference"] == pytest.approx(again["knn"] - first["knn"])
    assert main([*line, "--data", str(data / "train")]) == 0
    first, *_ = json.loads(out.read_text())["rows"]
    assert "knn" not in first
    assert first["neighbours"] == 100
    assert main(["bench", "fidelity", "--data", str(data)]) == 2
    assert main(["bench", "remote", "--data", str(data)]) == 2


def test_other_images_in_shards_are_read_by_the_members_named(
    uninterrupted: tuple[Path, Path], tmp_path: Path, answer: Answer
) -> None:
    data, run = uninterrupted
    for split in ("train", "val"):
        source = open_source(data / split)
        members = []
        for index in range(len(source)):
            label = source.classes[source.label(index)].encode()
            members += [(f"{index:03}.input.jpg", bytes(source.encoded(index))), (f"{index:03}.name.txt", label)]
        (tmp_path / "shards" / split).mkdir(parents=True)
        write_tar(tmp_path / f"shards/{split}/0.tar", members)
    keys = ("--image", "input.jpg", "--label", "name.txt")
    for at, folder in enumerate((tmp_path / "shards/val", data / "val")):  # class folders have no members to be named
        code, text = answer(
            "knn", run, "--k", "3", "--device", "cpu", "--workers", "1", "--data", tmp_path / "shards", *keys,
            "--robustness", folder, "--report", tmp_path / f"out{at}",
        )  # fmt: skip
        assert code == 0, text
        written = json.loads((tmp_path / f"out{at}/knn.json").read_text())
        (other,) = written["robustness"]
        assert other["accuracy"] == written["rows"][0]["accuracy"]
