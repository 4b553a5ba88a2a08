"""Reading ahead of whoever takes a source's samples one after another."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastvicreg.contracts import ReadAhead, Source

BLOCK = 512
"""Samples that are hinted at together; the next ones are while these are taken."""


def reading_in_order(source: Source) -> Callable[[int], None]:
    """What to tell of each index as its sample is come to, from 0 on: it has the following ones read."""
    if not isinstance(source, ReadAhead):
        return lambda index: None
    total = len(source)

    def told(index: int) -> None:
        if index % BLOCK == 0:
            first = index + BLOCK if index else 0
            source.read_ahead(torch.arange(min(first, total), min(index + 2 * BLOCK, total)))

    return told
