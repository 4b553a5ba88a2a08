"""Every protocol on a GPU gives what it gives on a CPU, up to rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastvicreg.evaluate.heads import best_classes
from fastvicreg.evaluate.knn import knn_rank

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_neighbours_are_found_on_the_device(distance: str) -> None:
    torch.manual_seed(0)
    bank, labels, query = torch.randn(500, 16), torch.randint(0, 5, (500,)), torch.randn(80, 16)
    here = knn_rank(bank, labels, query, (10, 50), distance=distance)  # type: ignore[arg-type]
    there = knn_rank(bank.cuda(), labels.cuda(), query.cuda(), (10, 50), distance=distance)  # type: ignore[arg-type]
    for one, other in zip(here, there, strict=True):
        assert (one[:, 0] == other[:, 0].cpu()).float().mean() > 0.97


def test_classes_in_question_may_be_named_on_the_host() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 3.0]], device="cuda")
    assert best_classes(scores, torch.tensor([1, 3])).tolist() == [[3, 1]]


@pytest.mark.parametrize(
    "protocol",
    [
        ("knn", "--k", "3"),
        ("linear", "--epochs", "2", "--head", "bn-linear"),
        ("linear", "--frozen-features"),
        ("linear", "--frozen-features", "--solver", "sgd", "--epochs", "2"),
        ("semi", "--percent", "10", "--epochs", "2"),
        ("finetune", "--epochs", "1"),
        ("retrieval", "--recall", "1"),
        ("svm", "--costs", "1"),
    ],
)
def test_a_protocol_runs_on_the_device(
    protocol: tuple[str, ...],
    uninterrupted: tuple[Path, Path],
    tmp_path: Path,
    answer: Callable[..., tuple[int, str]],
) -> None:
    data, run = uninterrupted
    name, *rest = protocol
    out, some = tmp_path / "figures.json", data / "val"
    further = () if name in ("retrieval", "svm") else ("--robustness", some)
    code, text = answer(name, run, *rest, "--device", "cuda", "--json", out, "--report", tmp_path / "r", *further)
    assert code == 0, text
    assert json.loads(out.read_text())["rows"]
