"""FFCV's own rows stand beside ours on a ``.beton``, at a small size. Nothing here is timed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from fastvicreg.cli import main
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.profiles.bench.loader import run


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed: make ffcv")
def test_a_beton_adds_ffcvs_rows(make_folder, tmp_path: Path) -> None:
    data, out = tmp_path / "data.beton", tmp_path / "loader.json"
    convert_dataset(make_folder(train=12, val=0), data)
    threads = torch.get_num_threads()
    arguments = ["--size", "16", "--repeats", "2", "--workers", "1", "--json", str(out)]
    assert main(["bench", "loader", "--data", str(data), *arguments]) == 0
    rows = {row["pipeline"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows.keys() >= {"native", "ffcv", "ffcv-as-shipped", "torch-dataloader", "synthetic"}
    assert rows["ffcv-as-shipped"]["vs_ffcv"] == 1.0
    assert all(row["n"] == 2 and row["vs_ffcv"] > 0 and row["images_per_cpu_s"] > 0 for row in rows.values())
    assert torch.get_num_threads() == threads


def test_without_ffcv_its_rows_are_left_out_and_a_line_says_so(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data.beton"
    convert_dataset(make_folder(train=12, val=0), data)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rows = run(data, size=16, repeats=1, workers=1)
    assert {row["pipeline"].split(":")[0] for row in rows} == {"native", "torch-dataloader", "synthetic", "floor"}
    assert "FFCV, which is not installed" in caplog.text
