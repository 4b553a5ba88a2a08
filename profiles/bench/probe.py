"""The benchmark of linear classifiers on features computed once: L-BFGS beside the SGD of the paper's protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastvicreg.evaluate.knn import accuracy
from fastvicreg.evaluate.linear import fit_linear
from fastvicreg.evaluate.supervised import Training, feature_batches, train_heads
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions
from fastvicreg.profiles.measure import in_turn, summarize

COLUMNS = ("impl", "n", "m", "d", "classes", "epochs", "device", "s", "spread", "repeats", "accuracy", "best_epoch")

DISTANCE = 0.07
"""Between classes' centres, per feature; features are correlated and 0 or above, as an encoder's."""


@dataclass(frozen=True)
class ProbeOptions(DeviceOptions):
    """Linear classifiers of made features."""

    repeats: int = 3
    """Repeats of each measurement."""
    samples: int = 50_000
    """Training samples."""
    queries: int = 10_000
    """Samples that are classified."""
    features: int = 512
    """Width."""
    classes: int = 10
    """Classes."""
    epochs: int = 100
    """Of SGD, at the paper's learning rate of .02."""


def run(
    samples: int = 50_000,
    queries: int = 10_000,
    features: int = 512,
    classes: int = 10,
    epochs: int = 100,
    device: str = "cpu",
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """One row a solver: seconds, and the queries' accuracy in percent; SGD's after its last epoch and at its best."""
    generator = torch.Generator().manual_seed(0)
    centre_CD = torch.randn(classes, features, generator=generator) * DISTANCE
    mix_DD = torch.randn(features, features, generator=generator) / features**0.5

    def made(count: int) -> tuple[Tensor, Tensor]:
        labels_N = torch.randint(classes, (count,), generator=generator)
        noise_ND = torch.randn(count, features, generator=generator) @ mix_DD
        return (centre_CD[labels_N] + noise_ND + 0.1).relu().to(device), labels_N.to(device)

    (train_ND, labels_N), (query_MD, answers_M) = made(samples), made(queries)
    training = Training(epochs=epochs, head_lrs=(0.02,))

    def lbfgs() -> dict[str, Any]:
        predicted_M = fit_linear(train_ND, labels_N).scores(query_MD).argmax(1)
        return {"accuracy": accuracy(predicted_M, answers_M)}

    def sgd() -> dict[str, Any]:
        reports: list[float] = []
        train_heads(
            nn.Identity(),
            feature_batches(train_ND, labels_N, training),
            lambda: query_MD,
            answers_M,
            training,
            features=features,
            classes=classes,
            told=lambda report: reports.append(report.accuracy_R[0]),
        )
        return {"accuracy": reports[-1], "best_epoch": max(reports)}

    calls = {"lbfgs": lbfgs, "sgd": sgd}
    times, found = in_turn(calls, repeats=repeats, device=device)
    size = {"n": samples, "m": queries, "d": features, "classes": classes, "device": device, "repeats": repeats}
    rows = []
    for name in calls:
        timing = summarize(times[name])
        own = {"epochs": epochs} if name == "sgd" else {}
        rows.append({"impl": name, **size, **own, "s": timing.ms / 1e3, "spread": timing.spread, **found[name]})
    return rows


BENCHMARK = Benchmark(run, COLUMNS, key=("impl", "n", "m", "d", "classes", "device"), options=ProbeOptions, figure="s")
