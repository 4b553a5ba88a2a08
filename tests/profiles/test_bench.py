"""Benchmarks run at small sizes, write what they promise, and compare like with like. Nothing here is timed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastvicreg.cli import main
from fastvicreg.profiles import measure
from fastvicreg.profiles.bench import decoders
from fastvicreg.profiles.bench.resolution import FORMS

PROMISED = {"command", "commit", "versions", "hardware", "n", "rows"}


@pytest.mark.slow
def test_the_loader_rows_do_the_same_work(make_folder, tmp_path: Path) -> None:
    data, out = make_folder(train=12, val=0), tmp_path / "loader.json"
    arguments = ["bench", "loader", "--data", str(data), "--size", "16", "--repeats", "2", "--json", str(out)]
    assert main(arguments) == 0
    written = json.loads(out.read_text())
    assert written.keys() == PROMISED
    rows = written["rows"]
    expected = {"native", "torch-dataloader", "synthetic", "floor"}
    if find_spec("ffcv"):
        expected |= {"ffcv", "ffcv-as-shipped"}
    if find_spec("nvidia.dali"):
        expected |= {"dali", "dali-own-reader"}
    assert {row["pipeline"].split(":")[0] for row in rows} == expected
    assert all(row["images_per_s"] > 0 and row["images_per_cpu_s"] > 0 and row["mean_bytes"] > 100 for row in rows)
    base = next(row for row in rows if row["pipeline"] == "torch-dataloader" and row["workers"] == 1)
    assert base["vs_dataloader"] == 1.0


@pytest.mark.parametrize("part", ["augment", "resample"])
def test_kernel_benches_write_their_rows(part: str, tmp_path: Path) -> None:
    out = tmp_path / f"{part}.json"
    assert main(["bench", part, "--size", "16", "--repeats", "2", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written.keys() == PROMISED
    assert written["n"] == 2
    assert all(row["ms"] > 0 and "impl" in row for row in written["rows"])


@pytest.mark.slow
def test_conversions_are_measured_on_the_same_images(make_folder, tmp_path: Path) -> None:
    data, out = make_folder(train=6, val=0), tmp_path / "convert.json"
    assert main(["bench", "convert", "--data", str(data), "--repeats", "1", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["how"].split(",")[0].split(":")[0] for row in rows] == [
        "bytes kept",
        "tar shards",
        "500 px",
        *(["FFCV DatasetWriter"] if find_spec("ffcv") else []),
        "the disk alone",
    ]
    assert all(row["images_per_s"] > 0 and row["mean_bytes"] > 500 and row["vs_disk"] > 0 for row in rows)
    assert rows[-1]["vs_disk"] == 1.0


def test_the_plan_bench_has_a_row_a_part(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    assert main(["bench", "plan", "--repeats", "1", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["samples"] for row in rows] == [1_281_167] * 4 + [4096] * 2


def test_knn_in_one_pass_predicts_what_the_loop_does(tmp_path: Path) -> None:
    out = tmp_path / "knn.json"
    small = ["--bank", "600", "--queries", "300", "--features", "32", "--classes", "10", "--repeats", "2"]
    assert main(["bench", "knn", *small, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["impl"], row["distance"]) for row in rows] == [
        (impl, distance) for distance in ("cosine", "euclidean") for _ in range(2) for impl in ("loop", "one-pass")
    ]
    assert {row["k"] for row in rows} == {"20", "10 20 100 200"}
    assert all(row["equal"] == 1 and row["s"] > 0 for row in rows)


def test_both_solvers_of_the_probe_classify_the_same_features(tmp_path: Path) -> None:
    out = tmp_path / "probe.json"
    small = ["--samples", "3000", "--queries", "1000", "--features", "32", "--epochs", "20", "--repeats", "1"]
    assert main(["bench", "probe", *small, "--json", str(out)]) == 0
    lbfgs, sgd = json.loads(out.read_text())["rows"]
    assert (lbfgs["impl"], sgd["impl"]) == ("lbfgs", "sgd")
    assert 15 < lbfgs["accuracy"] < 95
    assert abs(lbfgs["accuracy"] - sgd["accuracy"]) < 5
    assert sgd["best_epoch"] >= sgd["accuracy"]


def test_interleaved_repeats_take_turns() -> None:
    calls: list[str] = []
    timings = measure.interleaved({name: lambda name=name: calls.append(name) for name in "AB"}, repeats=3, min_ms=0)
    assert "".join(calls[-6:]) == "ABBAAB"
    assert {name: timing.n for name, timing in timings.items()} == {"A": 3, "B": 3}


def test_what_empties_a_cache_precedes_each_call_and_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    seconds = {"flush": 5.0, "A": 2.0}
    monkeypatch.setattr(measure, "now", lambda device: sum(seconds[name] for name in calls))
    candidate, flush = (lambda name=name: calls.append(name) for name in ("A", "flush"))
    timing = measure.interleaved({"A": candidate}, repeats=3, min_ms=0, flush=flush)["A"]
    assert calls == ["flush", "A"] * 5
    assert timing == measure.Timing(2000.0, 0.0, 3)


def test_summaries_are_medians_with_relative_spread() -> None:
    assert measure.summarize([4.0, 1.0, 2.0, 3.0, 100.0]) == measure.Timing(3.0, 2 / 3, 5)
    assert measure.summarize([7.0]) == measure.Timing(7.0, 0.0, 1)


def test_figures_that_cannot_be_written_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert (
        main(["bench", "resample", "--size", "8", "--repeats", "1", "--json", str(tmp_path / "file" / "x.json")]) == 2
    )
    said = capsys.readouterr()
    assert "file is no folder; give another place." in said.err
    assert said.out == ""  # before the work


def test_decoders_need_a_gpu_and_say_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "decoders"]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err


def test_a_decoder_s_row_comes_before_the_next_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends the part at its limit leaves the rows that there are: a pipeline takes seconds to build on a GPU."""
    built: list[str] = []

    def engine_pass(source: Any, size: int, batch: int, threads: int, decoder: str, load: float | None) -> Any:
        built.append(decoder)
        return SimpleNamespace(close=lambda: None), lambda: batch

    monkeypatch.setattr(decoders, "open_source", lambda data: [b""] * 8)
    monkeypatch.setattr(decoders, "_engine_pass", engine_pass)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 200))
    rows = decoders.run("data", repeats=2)
    assert next(iter(rows))["n"] == 2
    assert built == ["cpu"]


@pytest.mark.slow
def test_the_view_sizes_have_a_row_for_every_form_and_pipeline(make_folder, tmp_path: Path) -> None:
    data, out = make_folder(train=6, val=0), tmp_path / "resolution.json"
    arguments = ["bench", "resolution", "--data", str(data), "--resolution", "32:64", "--repeats", "1"]
    assert main([*arguments, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {(row["form"], row["size"]) for row in rows} == {(form, size) for form in FORMS for size in (32, 64)}
    assert {row["pipeline"] for row in rows} >= {"native"}
    assert all(row["vs_largest"] == 1.0 for row in rows if row["size"] == 64)
    kept, *_, pixels = (row["mean_bytes"] for row in rows if row["pipeline"] == "native" and row["size"] == 32)
    assert kept < pixels


def test_the_view_sizes_refuse_what_no_run_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "resolution", "--resolution", "100"]) == 2
    assert "--resolution 100: give multiples of 32" in capsys.readouterr().err
