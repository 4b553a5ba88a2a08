"""An inspection looks at the run's own views, says what it found, and compares runs on the same images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Cursor
from fastvicreg.datasets import training_plan
from fastvicreg.evaluate.inspection import augmented_features
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.pretrained import load_trained


def test_views_are_those_of_the_plan_in_the_sources_order(uninterrupted: tuple[Path, Path]) -> None:
    data, run = uninterrupted
    trained = load_trained(run)
    config, source = trained.config, open_source(data / "val")
    found_NQF = augmented_features(trained.encoder, source, config, views=3, device="cpu", workers=1)
    assert found_NQF.shape == (9, 3, trained.encoder.features)
    plan = training_plan(config, 9)
    for turn, kept in ((0, 2), (1, 1)):
        engine = build_engine("native", source, plan, batch_size=9, workers=1)
        fed = next(AugmentedFeed(engine, plan).epoch(Cursor(config.run.epochs + turn, 0)))
        engine.close()
        for view in range(kept):
            with torch.no_grad():
                expected_BF = trained.encoder(fed.batch.views[view])
            assert torch.allclose(found_NQF[fed.batch.index_B, 2 * turn + view], expected_BF, atol=1e-5)


def test_views_of_a_run_by_steps_are_of_no_epoch_that_it_trained_on(uninterrupted: tuple[Path, Path]) -> None:
    data, run = uninterrupted
    trained, source = load_trained(run), open_source(data / "val")
    by_steps, by_epochs = (
        replace(trained.config, run=replace(trained.config.run, **lasting))
        for lasting in ({"epochs": 1, "total_steps": 7}, {"epochs": 7})
    )
    found, expected = (
        augmented_features(trained.encoder, source, config, views=2, device="cpu", workers=1)
        for config in (by_steps, by_epochs)
    )
    assert torch.equal(found, expected)


@pytest.mark.slow
def test_the_command_writes_figures_and_a_page(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = uninterrupted
    own, other = tmp_path / "a<b>", tmp_path / "other"
    shutil.copytree(run, own)
    shutil.copytree(run, other)
    shutil.rmtree(other / "checkpoints" / sorted(path.name for path in (other / "checkpoints").iterdir())[-1])
    arguments = ["--views", "4", "--json", str(tmp_path / "figures.json"), "--workers", "1"]
    assert main(["inspect", str(own), "--against", str(other), *arguments]) == 0
    first, second = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert (first["images"], first["viewed"], first["views"]) == (9, 9, 4)
    for space, width in (("features", 128), ("embeddings", 16)):
        figures = first[space]
        assert figures["dimensions"] == width
        assert 1 <= figures["rankme"] <= 9
        assert 1 <= figures["lidar"] <= width
        assert 0 < figures["correlation"] < 1
        assert 0 < figures["alignment"] < 4
        assert figures["uniformity"] < 0
        assert first["cka"][space] < 1
        assert figures != second[space]
    page = (own / "inspect.html").read_text()
    assert "a&lt;b&gt;" in page
    assert "a<b>" not in page
    assert page.count("<img") == 2
    assert page.count("<svg") == 7
    assert "CKA of embeddings" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_against_itself_is_the_same(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(uninterrupted[1])
    figures = tmp_path / "figures.json"
    assert main(["inspect", run, "--against", run, "--out", str(tmp_path / "x.html"), "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["rows"][0]["cka"] == pytest.approx({"features": 1, "embeddings": 1})


@pytest.mark.slow
def test_a_file_of_weights_has_features_alone(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = uninterrupted
    weights, figures = tmp_path / "weights.safetensors", tmp_path / "figures.json"
    assert main(["export", str(run), str(weights)]) == 0
    assert main(["inspect", str(weights)]) == 2
    assert "give --data FOLDER" in capsys.readouterr().err
    assert main(["inspect", str(weights), "--data", str(data), "--against", str(run), "--json", str(figures)]) == 0
    own, other = json.loads(figures.read_text())["rows"]
    assert "embeddings" not in own
    # The file does not say by which recipe its views were made, but the images are the same.
    kept = ("rankme", "std", "correlation", "uniformity")
    assert [own["features"][name] for name in kept] == pytest.approx([other["features"][name] for name in kept])
    assert own["cka"] == pytest.approx({"features": 1})
    assert (tmp_path / "weights.inspect.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "7"], "--images 7: give 8 or more"),
        (["--views", "1"], "--views 1: give 2 or more"),
        (["--out", "page.txt"], "--out page.txt: give the name of an .html file"),
        (["--against", "nowhere"], "nowhere"),
        (["--checkpoint", "77"], "--checkpoint 77"),
        (["--fault-count", "-1"], "--fault-count -1 is too small"),
        (["--fault-share", "nan"], "--fault-share nan is too small"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(
    uninterrupted: tuple[Path, Path],
    tmp_path: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(uninterrupted[1]), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.glob("*.html"))


def test_small_crops_of_a_multicrop_recipe_are_left_out(uninterrupted: tuple[Path, Path]) -> None:
    data, run = uninterrupted
    trained = load_trained(run)
    config: TrainConfig = replace(trained.config, data=replace(trained.config.data, recipe="multicrop", small_size=8))
    found = augmented_features(trained.encoder, open_source(data / "val"), config, views=4, device="cpu", workers=1)
    assert found.shape == (9, 4, trained.encoder.features)
    assert found.isfinite().all()
