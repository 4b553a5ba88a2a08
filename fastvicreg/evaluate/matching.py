"""Validation labels under the numbers of the bank's classes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastvicreg.contracts import Source
from fastvicreg.datasets import Datasets
from fastvicreg.errors import UserError
from fastvicreg.evaluate.labels import by_name, obstacle
from fastvicreg.pipelines.sources.labelled import LabelledSource


def matched(queries: Source, numbers: list[int], classes: tuple[str, ...]) -> tuple[Source, Tensor | None]:
    """``queries`` under the bank's ``numbers`` of its classes, and these where they are not all."""
    allowed_A = torch.tensor(sorted(numbers)) if len(numbers) < len(classes) else None
    if numbers == list(range(len(numbers))):
        return queries, allowed_A
    labels = [queries.label(index) for index in range(len(queries))]
    return LabelledSource(queries, [numbers[label] if label >= 0 else -1 for label in labels], classes), allowed_A


def labelled(data: Datasets) -> tuple[Datasets, Tensor | None]:
    """``data`` with its validation labels under the bank's numbers, and the classes that come into question."""
    queries, allowed_A = data.validation, None
    if queries is not None and (numbers := by_name(data.train.classes, queries.classes)):
        queries, allowed_A = matched(queries, numbers, data.train.classes)
    if reason := obstacle(data.train, queries, bank_where=data.where, queries_where=data.validation_where):
        raise UserError(f"no accuracy: {reason}")
    return replace(data, validation=queries), allowed_A
