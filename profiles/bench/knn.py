"""The kNN benchmark: every k in one pass over blocks, beside a loop in the form that solo-learn evaluates by.

N samples of the bank, M queries, D features, C classes, K neighbours, Q queries at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.evaluate.knn import Distance, knn_rank
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions
from fastvicreg.profiles.measure import in_turn, summarize

COLUMNS = ("impl", "distance", "k", "n", "m", "d", "classes", "device", "s", "spread", "repeats", "ratio", "equal")

KS = (10, 20, 100, 200)
DISTANCES: tuple[Distance, ...] = ("cosine", "euclidean")
MATRIX = 5_000_000
"""Similarities that solo-learn's loop computes at once (its default)."""
NOISE = 2.0
"""Of a sample around its class's centre, per feature: accuracies are then neither 0 nor 100 %."""


@dataclass(frozen=True)
class KNNOptions(DeviceOptions):
    """kNN of made features."""

    repeats: int = 3
    """Repeats of each measurement."""
    bank: int = 50_000
    """Samples that answer."""
    queries: int = 10_000
    """Samples that ask."""
    features: int = 2048
    """Width."""
    classes: int = 1000
    """Classes."""
    distance: Literal["cosine", "euclidean", "both"] = "both"
    """What nearness is."""


def looped(bank_ND: Tensor, labels_N: Tensor, query_MD: Tensor, k: int, distance: Distance, classes: int) -> Tensor:
    """predictions_M by a loop over queries, whose votes are a sum of one-hot rows: the form of solo/utils/knn.py.

    The features of a cosine are normalised by the caller, as solo-learn's are.
    """
    predictions = []
    for query_QD in query_MD.split(max(1, MATRIX // len(bank_ND))):
        similarity_QN = query_QD @ bank_ND.T if distance == "cosine" else 1 / (torch.cdist(query_QD, bank_ND) + 1e-5)
        weight_QK, index_QK = similarity_QN.topk(k, largest=True, sorted=True)
        if distance == "cosine":
            weight_QK = (weight_QK / 0.07).exp()
        label_QK = labels_N.expand(len(query_QD), -1).gather(1, index_QK)
        votes_QKC = torch.zeros(label_QK.numel(), classes, device=bank_ND.device).scatter_(1, label_QK.view(-1, 1), 1)
        votes_QC = (votes_QKC.view(*label_QK.shape, classes) * weight_QK[..., None]).sum(1)
        predictions.append(votes_QC.sort(1, descending=True).indices[:, 0])
    return torch.cat(predictions)


def run(
    bank: int = 50_000,
    queries: int = 10_000,
    features: int = 2048,
    classes: int = 1000,
    distance: Literal["cosine", "euclidean", "both"] = "both",
    device: str = "cpu",
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """One row per distance, set of k and implementation.

    "loop" walks the bank once for every k, as solo-learn's main_knn.py does; "one-pass" once for all. ``ratio`` is how
    many times faster than the loop for the same k; ``equal`` is the share of predictions that are the loop's. ``s`` is
    seconds; what is timed takes features as the encoder gives them, so that normalising counts.
    """
    bank_ND, labels_N = _made(bank, features, classes, device, seed=1)
    query_MD, _ = _made(queries, features, classes, device, seed=2)
    rows = []
    for each in DISTANCES if distance == "both" else (distance,):
        for ks in ((20,), KS):
            fitting = tuple(k for k in ks if k <= bank)
            calls = _calls(bank_ND, labels_N, query_MD, fitting, each, classes)
            rows += _timed(calls, device, repeats, {"distance": each, "k": " ".join(map(str, fitting))})
    size = {"n": bank, "m": queries, "d": features, "classes": classes, "device": device, "repeats": repeats}
    return [row | size for row in rows]


Calls = dict[str, Callable[[], list[Tensor]]]


def _calls(
    bank_ND: Tensor, labels_N: Tensor, query_MD: Tensor, ks: tuple[int, ...], distance: Distance, classes: int
) -> Calls:
    def loop() -> list[Tensor]:
        found = []
        for k in ks:
            bank, query = bank_ND, query_MD
            if distance == "cosine":
                bank, query = F.normalize(bank, dim=1), F.normalize(query, dim=1)
            found.append(looped(bank, labels_N, query, k, distance, classes))
        return found

    def one_pass() -> list[Tensor]:
        return [top_MK[:, 0] for top_MK in knn_rank(bank_ND, labels_N, query_MD, ks, distance=distance)]

    return {"loop": loop, "one-pass": one_pass}


def _timed(calls: Calls, device: str, repeats: int, case: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a call; ``ratio`` is of pairs of one round."""
    times, found = in_turn(calls, repeats=repeats, device=device)
    truth = torch.cat(found["loop"])
    rows = []
    for name in calls:
        timing = summarize(times[name])
        ratio = summarize([a / b for a, b in zip(times["loop"], times[name], strict=True)]).ms
        equal = float((torch.cat(found[name]) == truth).float().mean())
        rows.append(
            {"impl": name, **case, "s": timing.ms / 1e3, "spread": timing.spread, "ratio": ratio, "equal": equal}
        )
    return rows


def _made(count: int, features: int, classes: int, device: str, *, seed: int) -> tuple[Tensor, Tensor]:
    """Features of clustered classes that are 0 or above, as an encoder's after its ReLU, and labels."""
    centres = torch.Generator().manual_seed(0)
    generator = torch.Generator().manual_seed(seed)
    centre_CD = torch.randn(classes, features, generator=centres)
    labels_N = torch.randint(classes, (count,), generator=generator)
    feature_ND = torch.randn(count, features, generator=generator).mul_(NOISE).add_(centre_CD[labels_N]).relu_()
    return feature_ND.to(device), labels_N.to(device)


BENCHMARK = Benchmark(
    run, COLUMNS, key=("impl", "distance", "k", "n", "m", "d", "classes", "device"), options=KNNOptions, figure="s"
)
