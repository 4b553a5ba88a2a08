"""Encoders and batches small enough to test a method on."""

from __future__ import annotations

import torch

from fastvicreg.contracts import Batch, Cursor
from fastvicreg.encoders.resnet.network import ResNet, resnet


def encoder() -> ResNet:
    """The narrowest ResNet."""
    return resnet("resnet18", width=16, stem="3x3s2")


def batch_of(samples: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Two views of noise, always the same."""
    generator = torch.Generator().manual_seed(7)
    views = torch.randn(2, samples, 3, 16, 16, generator=generator).to(dtype)
    index_B = torch.arange(samples)
    ordered = tuple(view.contiguous(memory_format=torch.channels_last) for view in views)
    return Batch(ordered, index_B, index_B % 2, Cursor(0, 0))
