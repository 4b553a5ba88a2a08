"""The definition of a norm with its addition and ReLU, by torch's own operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.kernels.loss.ranks import GatherRows, Ranks
from fastvicreg.kernels.norm.options import Options


def batch_norm_act(
    x: Tensor,
    residual: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    running: tuple[Tensor, Tensor] | None,
    options: Options,
) -> Tensor:
    """To be differentiated by autograd; among several processes each normalises all of their rows and keeps its own."""
    mean_C, var_C = running or (None, None)
    parts = x.chunk(options.views) if options.views > 1 else (x,)
    found = []
    for part in parts:
        rows = _all_rows(part, options) if options.ranks > 1 else part
        y = F.batch_norm(rows, mean_C, var_C, weight_C, bias_C, True, options.momentum, options.eps)
        found.append(Ranks.named(options.group).own(y) if options.ranks > 1 else y)
    y = torch.cat(found) if len(found) > 1 else found[0]
    if residual is not None:
        y = y + residual
    return F.relu(y, inplace=True) if options.relu else y


def _all_rows(part: Tensor, options: Options) -> Tensor:
    gathered: Tensor = GatherRows.apply(part.flatten(1), Ranks.named(options.group))
    return gathered.unflatten(1, part.shape[1:]) if part.ndim > 2 else gathered
