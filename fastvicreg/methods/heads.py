"""Heads on an encoder's features: the networks that a method trains with and evaluation leaves out."""

from __future__ import annotations

from torch import nn


def mlp(
    features: int,
    widths: tuple[int, ...],
    *,
    hidden_bias: bool = True,
    last_bias: bool = False,
    batch_norm: bool = True,
    layer_norm: bool = False,
) -> nn.Sequential:
    """Linear + norm + ReLU for each width but the last, then one linear layer.

    The norm is a layer norm where ``layer_norm`` says so, else a batch norm, or none. Without ``batch_norm`` the hidden
    linear layers have a bias, whatever ``hidden_bias`` says: it is left out only where batch norm's own follows.
    """
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers.append(nn.Linear(features, width, bias=hidden_bias or not batch_norm))
        if layer_norm:
            layers.append(nn.LayerNorm(width))
        elif batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU(inplace=True))
        features = width
    return nn.Sequential(*layers, nn.Linear(features, widths[-1], bias=last_bias))


def expander(
    features: int, widths: tuple[int, ...], *, batch_norm: bool = True, layer_norm: bool = False
) -> nn.Sequential:
    """VICReg's: ``mlp`` without bias in the last layer.

    As the official code's Projector: the hidden linear layers keep their bias. BYOL's projector and predictor are the
    same with one hidden layer (byol/utils/networks.py, MLP).
    """
    return mlp(features, widths, batch_norm=batch_norm, layer_norm=layer_norm)
