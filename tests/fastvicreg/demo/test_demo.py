"""The demo's data and story: real images, disjoint splits, a report that needs nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastvicreg.cli import main
from fastvicreg.demo import embedded
from fastvicreg.demo.story import probe
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import Features


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded.write_once(tmp_path_factory.mktemp("cache"))


def test_embedded_images_are_patches_of_photographs_in_class_folders(folder: Path) -> None:
    for split, total in (("train", embedded.TRAIN), ("test", embedded.TEST)):
        files = list((folder / split).glob("*/*.png"))
        assert len(files) == total
        assert len({file.parent.name for file in files}) == len(embedded.PHOTOGRAPHS)
        image = Image.open(files[0])
        assert (image.size, image.mode) == ((embedded.PATCH, embedded.PATCH), "L")
    assert embedded.write_once(folder.parent) == folder


def test_no_pixel_is_in_both_splits() -> None:
    for number, (height, width) in enumerate([(512, 512), (300, 451), (191, 384), (64, 128)]):
        seen = {}
        for split, corners in embedded.places(number, height, width).items():
            seen[split] = np.zeros((height, width), bool)
            for top, left in corners:
                window = seen[split][top : top + embedded.PATCH, left : left + embedded.PATCH]
                assert window.shape == (embedded.PATCH, embedded.PATCH)
                window[:] = True
        assert seen["train"].any()
        assert seen["test"].any()
        assert not (seen["train"] & seen["test"]).any()


def test_files_are_the_patches_of_their_places(folder: Path) -> None:
    number = embedded.PHOTOGRAPHS.index("grass.png")
    pixels_HW = embedded.photograph_pixels("grass.png")
    for split, corners in embedded.places(number, *pixels_HW.shape).items():
        files = sorted((folder / split / "grass").glob("*.png"))
        for file, (top, left) in zip(files, corners, strict=True):
            written = np.asarray(Image.open(file))
            np.testing.assert_array_equal(written, np.asarray(embedded.patch(pixels_HW, top, left)))


def test_neither_brightness_nor_contrast_names_a_photograph(folder: Path) -> None:
    for file in sorted((folder / "test").glob("*/*.png"))[::7]:
        pixels = np.asarray(Image.open(file), np.float64)
        assert pixels.mean() == pytest.approx(embedded.MEAN, abs=8), file  # 0 and 255 cut some
        assert pixels.std() < embedded.STD + 1, file


def test_a_flat_patch_is_not_made_a_texture() -> None:
    pixels_HW = np.full((64, 64), 7, np.uint8)
    pixels_HW[0, 0] = 8
    stretched = np.asarray(embedded.patch(pixels_HW, 0, 0))
    assert np.count_nonzero(stretched != embedded.MEAN) <= 1


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the embedded images"):
        embedded.write_once(tmp_path / "file")


def test_probe_scores_known_features() -> None:
    import torch

    labels = torch.arange(300) % 3
    telling = torch.nn.functional.one_hot(labels).float() + 0.01 * torch.randn(300, 3)
    perfect = probe(Features(telling, labels), Features(telling, labels))
    assert perfect == {"knn": 100.0, "linear": 100.0, "few": 100.0}
    # Two classes along one direction differ by length only: an angle cannot tell them, a distance can.
    line = torch.stack([labels.float() + 1, 2 * labels.float() + 2], 1) + 0.01 * torch.randn(300, 2)
    assert probe(Features(line, labels), Features(line, labels), euclidean=True)["knn"] == 100.0


def test_features_on_a_device_are_probed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed of them stays where they are: a device refuses the host's numbers beside its own."""
    import torch

    seen: list[str] = []

    def predicted(bank: torch.Tensor, labels: torch.Tensor, query: torch.Tensor, **options: float) -> torch.Tensor:
        seen.extend(part.device.type for part in (bank, labels, query))
        return labels

    labels = torch.zeros(60, dtype=torch.int64, device="meta")
    features = Features(torch.zeros(60, 2, device="meta"), labels)
    monkeypatch.setattr("fastvicreg.demo.story.few_labels", lambda labels, count, seed: labels[:count])
    monkeypatch.setattr("fastvicreg.demo.story.accuracy", lambda predictions, labels: 50.0)
    for name in ("knn_predict", "linear_predict"):
        monkeypatch.setattr(f"fastvicreg.demo.story.{name}", predicted)
    assert probe(features, features, euclidean=True) == {"knn": 50.0, "linear": 50.0, "few": 50.0}
    assert set(seen) == {"meta"}


@pytest.mark.slow
def test_the_demo_tells_its_whole_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "TRAIN", 17 * 16)
    monkeypatch.setattr(embedded, "TEST", 17 * 4)
    monkeypatch.setattr(embedded, "cache_folder", lambda: tmp_path / "cache")
    out, figures = tmp_path / "demo", tmp_path / "demo.json"
    assert main(["demo", "--out", str(out), "--epochs", "1", "--seeds", "2", "--json", str(figures)]) == 0
    shown = capsys.readouterr().out
    assert "fastvicreg train --data FOLDER" in shown
    rows = json.loads(figures.read_text())["rows"]
    names = [row["features"] for row in rows]
    assert names[:3] == ["raw pixels", "mean and std of pixels", "random network"]
    for row in rows:
        assert all(0 < row[probe] <= 100 for probe in ("knn", "linear", "few"))
    page = (out / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert not re.findall(r"<script|https?://(?!www\.w3\.org|purl\.org|creativecommons|matplotlib)", page)
    assert page.count("<svg") == 4
    assert all(low <= row["knn"] <= high for row in rows for low, high in [row["spread"]["knn"]])
    assert rows[0]["spread"]["knn"][0] == rows[0]["spread"]["knn"][1]  # raw pixels know no seed
    assert f"<td>{rows[0]['features']}</td><td>{rows[0]['knn']:.1f}</td>" in page
    assert "already holds a run" in refused_again(out, capsys)
    for again in range(2):
        assert main(["eval", "knn", str(out / "run"), "--k", "5"]) == 0
        assert ("taken from the cache" in capsys.readouterr().out) == bool(again)


def refused_again(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["demo", "--out", str(out), "--epochs", "1"]) == 2
    return capsys.readouterr().err
