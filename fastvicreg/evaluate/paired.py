"""Retrieval between the two modalities of a run of pairs, in the space in which its loss compares them.

Shape suffixes: N samples, M views of the second modality (several captions a sample), Q queries at once, D embedding
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Method
from fastvicreg.evaluate.features import Features, extract
from fastvicreg.pipelines.feed import as_view
from fastvicreg.pipelines.pairs.fixed import all_views
from fastvicreg.pipelines.pairs.modalities import modality_of
from fastvicreg.pipelines.pairs.source import MemberSource, PairedSource
from fastvicreg.pipelines.pairs.text import Text
from fastvicreg.stalls import LIMIT
from fastvicreg.train.device import autocast

BLOCK = 1024
"""Queries that are compared at once."""


class Embedded(NamedTuple):
    """A modality's embeddings and the sample that each belongs to."""

    z_MD: Tensor
    sample_M: Tensor
    faults: int


@torch.no_grad()
def embed_pairs(
    method: Method,
    source: PairedSource,
    *,
    image_size: int,
    device: str,
    workers: int = 0,
    stall: float = LIMIT,
    first: Features | None = None,
    precision: str = "off",
) -> tuple[Embedded, Embedded]:
    """Unit-length embeddings of both members by encoder and head of their branch, in evaluation mode meanwhile.

    ``first``: the first encoder's features of the first members where they are known; of captions, of which a sample
    may have several, they are not used. The encoders run in ``precision``, as ``features.extract``; the heads do not.
    ``StalledError`` where a batch takes more than ``stall`` seconds.
    """
    assert isinstance(method, nn.Module)
    heads = [getattr(method, name) for name in ("head", "head_b")]
    was_training = method.training
    method.eval()
    try:
        a, b = (
            _embed(encoder, head, member, image_size, device, workers, stall, precision, known)
            for encoder, head, member, known in zip(
                method.encoders.values(), heads, source.members, (first, None), strict=True
            )
        )
    finally:
        method.train(was_training)
    return a, b


def _embed(
    encoder: nn.Module,
    head: nn.Module,
    member: MemberSource,
    image_size: int,
    device: str,
    workers: int,
    stall: float,
    precision: str,
    known: Features | None,
) -> Embedded:
    modality = modality_of(member)
    if not isinstance(modality, Text):  # one view a sample
        found = known or extract(
            encoder,
            member,
            image_size=image_size,
            device=device,
            workers=workers,
            stall=stall,
            precision=precision,
        )
        z_ND = head(found.features_NF)
        return Embedded(F.normalize(z_ND.float(), dim=1), torch.arange(len(z_ND), device=z_ND.device), found.faults)
    embeddings, samples, faults = [], [], 0
    views_of_all = all_views(member, modality, workers=workers, stall=stall)
    for views, sample_M, faults in views_of_all:  # noqa: B007  # the last count is the whole
        with autocast(device, precision):
            features_MF = encoder(as_view(views.to(device), torch.float32))
        embeddings.append(head(features_MF.float()))
        samples.append(sample_M)
    z_MD = torch.cat(embeddings)
    return Embedded(F.normalize(z_MD.float(), dim=1), torch.cat(samples).to(z_MD.device), faults)


@torch.no_grad()
def recalls(queries: Embedded, answers: Embedded, ranks: Sequence[int]) -> dict[str, float]:
    """``recall@K`` in percent: how often an answer of the query's own sample is among the K nearest by cosine.

    As VSE++ and the paper's Table 3 count it: an image's captions are all right answers, and each caption asks by
    itself for its image. Of equally near answers any order is as likely, as of samples with the same caption: recall is
    the expectation over them, chance where all embeddings are one. ``median_rank``, over the queries, is of the rank
    that the first right answer has in expectation, from 1.
    """
    found = []
    for z_QD, sample_Q in zip(queries.z_MD.split(BLOCK), queries.sample_M.split(BLOCK), strict=True):
        similarity_QM = z_QD @ answers.z_MD.T
        right_QM = sample_Q[:, None] == answers.sample_M
        best_Q1 = similarity_QM.masked_fill(~right_QM, -torch.inf).amax(1, keepdim=True)
        as_near_QM = similarity_QM == best_Q1
        nearer_Q = ((similarity_QM > best_Q1) & ~right_QM).sum(1)
        found.append(torch.stack([nearer_Q, (as_near_QM & ~right_QM).sum(1), (as_near_QM & right_QM).sum(1)]))
    nearer_Q, wrong_Q, right_Q = torch.cat(found, 1).double()
    values = {f"recall@{k}": 100 * float(_within(k, nearer_Q, wrong_Q, right_Q).mean()) for k in ranks}
    first_Q = nearer_Q + (wrong_Q + right_Q + 1) / (right_Q + 1)
    return values | {"median_rank": float(first_Q.median())}


def _within(k: int, nearer_Q: Tensor, wrong_Q: Tensor, right_Q: Tensor) -> Tensor:
    """The probability that one of the right answers is among the first ``k``.

    They are among ``wrong + right`` equally near ones behind ``nearer`` others: 1 - C(wrong, m) / C(wrong + right, m)
    for the m places that are left.
    """
    places_Q = (k - nearer_Q).clamp(min=0)
    fits_Q = places_Q.minimum(wrong_Q)
    none_Q = _log_choose(wrong_Q, fits_Q) - _log_choose(wrong_Q + right_Q, fits_Q)
    return torch.where(places_Q > wrong_Q, 1.0, 1 - none_Q.exp())


def _log_choose(n_Q: Tensor, k_Q: Tensor) -> Tensor:
    return torch.lgamma(n_Q + 1) - torch.lgamma(k_Q + 1) - torch.lgamma(n_Q - k_Q + 1)


def retrieval_rows(
    pair: Sequence[str], first: Embedded, second: Embedded, ranks: Sequence[int]
) -> list[dict[str, Any]]:
    """Both directions: {"direction": "image to text", "queries", "answers", "recall@1" ...}."""
    sides = ((pair[0], pair[1], first, second), (pair[1], pair[0], second, first))
    return [
        {"direction": f"{of} to {to}", "queries": len(queries.z_MD), "answers": len(answers.z_MD)}
        | recalls(queries, answers, ranks)
        for of, to, queries, answers in sides
    ]
