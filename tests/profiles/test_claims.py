"""What a run of ``bench all`` says of docs/hardware.md: no more than was seen."""

from __future__ import annotations

from pathlib import Path

from fastvicreg.profiles.bench import claims

PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"


def test_every_row_that_waits_for_a_gpu_has_something_that_turns_it() -> None:
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    waiting = {cells[1].strip() for cells in rows if "not run yet" in cells[3]}
    assert waiting == {claim.row for claim in claims.CLAIMS}


def test_a_row_turns_with_what_passed_and_says_what_failed() -> None:
    figures = {
        "train": [
            {"pipeline": "native", "verdict": "pass"},
            {"pipeline": "ffcv", "verdict": "no module named ffcv"},
            {"pipeline": "synthetic", "verdict": "pass"},
        ],
        "correctness-training": [{"kernel": "norm, add", "impl": "triton", "verdict": "pass"}],
        "correctness": [
            {"kernel": "norm", "impl": "triton", "verdict": "FAIL: OutOfResources: shared memory"},
            {"kernel": "loss", "impl": "cuda", "verdict": "pass"},
            {"kernel": "loss, graph replay", "impl": "triton", "verdict": "pass"},
        ],
        "step": [{"variant": "eager", "ms": 3.0}, {"variant": "graphed", "note": "it needs CUDA"}],
    }
    outcomes = {"step": "ok", "step-compiled": "stopped after 100 s", "profile": "ok", "swap": "a check FAILED"}
    document = {"hardware": {"gpus": ["NVIDIA H200"]}, "versions": {"torch": "2.11.0"}, "commit": "abc"}
    lines = claims.table(outcomes, figures, document).splitlines()
    assert lines[0].startswith("Seen on NVIDIA H200, torch 2.11.0, ")
    found = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines[4:]}
    assert found["training, resume, evaluation, demo"] == "yes, 1 of 1"
    assert found["native, ffcv and synthetic engines"] == "yes, 2 of 2; not run: no module named ffcv"
    assert found["norm: triton"] == "**FAILED** 1 of 2: FAIL: OutOfResources: shared memory"
    assert found["loss: cuda, triton"] == "yes, 2 of 2"
    assert found["loss: reference, gram"] == "**not run yet**"
    assert found["steps: eager, graphed, cached"] == "yes, 1 of 1; not run: it needs CUDA"
    assert found["steps: compiled"] == "**not run yet** (step-compiled: stopped after 100 s)"
    assert found["several processes"] == "**not run yet**"


def test_a_part_that_broke_turns_no_row_in_silence() -> None:
    """Its rows are those that it had until then: what broke it has none."""
    figures = {
        "correctness": [{"kernel": "loss", "impl": "cuda", "verdict": "pass"}],
        "step": [{"variant": "eager", "ms": 3.0}],
        "train": [{"pipeline": "native", "verdict": "pass"}],
    }
    outcomes = {
        "correctness": "ended with exit code -6",
        "step": "stopped after 70 s",
        "train": "ended with exit code -11",
    }
    document = {"hardware": {"gpus": []}, "versions": {}, "commit": "abc"}
    lines = claims.table(outcomes, figures, document).splitlines()
    found = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines[4:]}
    assert found["loss: cuda, triton"] == "yes, 1 of 1; not run: correctness: ended with exit code -6"
    assert found["LARS: cuda"] == "**not run yet** (correctness: ended with exit code -6)"
    assert found["steps: eager, graphed, cached"] == "yes, 1 of 1; not run: step: stopped after 70 s"
    assert found["training, resume, evaluation, demo"] == "yes, 1 of 1"
    assert found["native, ffcv and synthetic engines"] == "yes, 1 of 1; not run: train: ended with exit code -11"
