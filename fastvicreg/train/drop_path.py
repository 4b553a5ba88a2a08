"""The draws of stochastic depth: pure functions of seed, epoch, sample, view and residual branch.

No state exists: a resumed run, any number of processes and a second forward pass leave out the same samples.

Shape suffixes: B batch (this process's share), V views, K residual branches that drop.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastvicreg.caches import njit
from fastvicreg.contracts import Batch
from fastvicreg.encoders.drop_path import DropPath, Drops
from fastvicreg.pipelines.rng import Purpose, fold_in, stream, uniform
from fastvicreg.train.device import sent


def install(method: nn.Module, seed: int) -> Drops | None:
    """Number the branches of ``method`` that drop, and let them share one ``Drops``; None where there are none."""
    branches = [part for part in method.modules() if isinstance(part, DropPath) and part.rate]
    if not branches:
        return None
    drops = Drops(seed, tuple(part.rate for part in branches))
    for number, branch in enumerate(branches):
        branch.branch = number
    for part in method.modules():  # what ``methods.views.each_view`` is given
        part.drops = drops  # type: ignore[assignment]
    return drops


def drops_of(method: object) -> Drops | None:
    """What ``install`` made of it."""
    return getattr(method, "drops", None)


def drawn(drops: Drops, batch: Batch) -> Tensor:
    """factor_VKB, fp64, where the views are: of each sample of ``batch``, by its number in the data.

    On the host, where the numbers are; the device does not wait, nor is it waited for.
    """
    index_B = batch.index_B.cpu().numpy()
    factor_VKB = np.empty((len(batch.views), len(drops.rates), len(index_B)))
    _fill(drops.seed, batch.cursor.epoch, index_B, np.array(drops.rates), factor_VKB)
    return sent(torch.from_numpy(factor_VKB), batch.views[0].device)


@njit(nogil=True)
def _fill(
    seed: int, epoch: int, index_B: NDArray[np.int64], rate_K: NDArray[np.float64], factor_VKB: NDArray[np.float64]
) -> None:
    key = stream(seed, epoch, Purpose.DROP_PATH)
    for b in range(len(index_B)):
        sample = fold_in(key, index_B[b])
        for v in range(factor_VKB.shape[0]):
            own = fold_in(sample, v)
            for k in range(len(rate_K)):
                factor_VKB[v, k, b] = 0.0 if uniform(own, k) < rate_K[k] else 1.0 / (1.0 - rate_K[k])
