"""How the embeddings of each side of a method spread, every few steps: deviation and rank, without a wait for a device.

Shape suffixes: R rows (``SIDE_ROWS`` at most), D embedding width.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.contracts import Cursor, Method, Spread
from fastvicreg.evaluate.diagnostics import entropy_rank
from fastvicreg.show.metrics import to_host


class _Taken(NamedTuple):
    """One step's figures, on their way to the host."""

    head: dict[str, Any]
    names: tuple[str, ...]
    std_S: Tensor
    """Of each side."""
    gram_SRR: Tensor
    """Products of its embeddings."""
    most: int
    copied: torch.cuda.Event | None


class SpreadLog:
    """Rows of epoch, step and, for each side of a method, ``std_SIDE`` and ``rank_SIDE``; ``rank_most`` is the bound.

    ``std_SIDE`` is a share of the method's healthy spread, 1 where embeddings spread as its loss wants. ``rank_SIDE``
    is RankMe of a batch's first embeddings, ``SIDE_ROWS`` at most. Sides are those of this process's batch.
    """

    def __init__(self, method: Method | None) -> None:
        """Without a method, in all processes but one, nothing is taken."""
        self._method = method
        self._taken: deque[_Taken] = deque()

    @torch.no_grad()
    def take(self, step: int, cursor: Cursor) -> None:
        """Set the device to work on the sides of the step just made; nothing for a method that has none."""
        sides: dict[str, Tensor] = getattr(self._method, "sides", {})
        if self._method is None or not sides:
            return
        spread = self._method.spread
        std_S = torch.stack([side_std(z_RD, spread) for z_RD in sides.values()])
        # In fp64: singular values are the eigenvalues' roots, of which fp32 would leave three digits.
        gram_SRR = torch.stack([z_RD.double() @ z_RD.double().T for z_RD in sides.values()])
        most = min(next(iter(sides.values())).shape)
        std_S, _ = to_host(std_S)
        gram_SRR, copied = to_host(gram_SRR)
        head = {"epoch": cursor.epoch, "step": step}
        self._taken.append(_Taken(head, tuple(sides), std_S, gram_SRR, most, copied))

    def rows(self, *, late: bool = False) -> list[dict[str, Any]]:
        """Of all steps taken; ``late`` leaves out the newest of a device, which may not have come to it."""
        rows = []
        while self._taken and not (late and len(self._taken) == 1 and self._taken[0].copied is not None):
            taken = self._taken.popleft()
            if taken.copied is not None:
                taken.copied.synchronize()
            if not taken.gram_SRR.isfinite().all():  # a step that did not count
                continue
            std = {f"std_{name}": float(value) for name, value in zip(taken.names, taken.std_S, strict=True)}
            roots = torch.linalg.eigvalsh(taken.gram_SRR).clamp_min(0).sqrt()
            rank = {f"rank_{name}": entropy_rank(root_R) for name, root_R in zip(taken.names, roots, strict=True)}
            rows.append(taken.head | std | rank | {"rank_most": taken.most})
        return rows


def side_std(z_RD: Tensor, spread: Spread) -> Tensor:
    """Mean over dimensions of the standard deviation, as ``spread`` takes it, as a share of what is healthy."""
    z_RD = z_RD.float()
    return (z_RD if spread.raw else F.normalize(z_RD, dim=1)).std(0).mean() / spread.healthy
