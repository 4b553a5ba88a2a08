"""Heads on an encoder's features: the networks that a method trains with and evaluation leaves out."""

from __future__ import annotations

from torch import nn


def expander(features: int, widths: tuple[int, ...]) -> nn.Sequential:
    """VICReg's: linear + batch norm + ReLU for each width but the last, then one linear layer without bias.

    As the official code's Projector: the hidden linear layers keep their bias. BYOL's projector and predictor are the
    same with one hidden layer (byol/utils/networks.py, MLP).
    """
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, widths[-1], bias=False))
