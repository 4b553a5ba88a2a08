"""Gradient clipping before the update: by the norm of all gradients, or of each parameter's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastvicreg.config import OptimConfig
from fastvicreg.contracts import Column

EPS = 1e-6
"""Added to a norm before the limit is divided by it, as torch.nn.utils and DINO's code do."""
COLUMN = Column("grad_norm", "grad", scale="log")
"""The norm of all gradients before they are clipped, in either way."""


@dataclass(frozen=True)
class Clipping:
    """Scales gradients down to a norm, on the device: nothing is read back.

    ``by`` "total" is torch.nn.utils.clip_grad_norm_; "parameter" facebookresearch/dino's utils.clip_gradients, where
    each parameter's gradient has the limit to itself.
    """

    norm: float
    by: Literal["total", "parameter"] = "total"

    def __call__(self, grads: list[Tensor]) -> Tensor:
        """Multiply each by min(1, ``norm`` / (its norm or that of all + 1e-6)); returns the norm of all before.

        A norm that is not finite leaves gradients that are not, which the finite gate is to keep from the weights.
        """
        # torch.optim's own optimizers are built on torch._foreach_*, which torch does not list as exported.
        norms = torch.stack(torch._foreach_norm(grads))  # pyright: ignore[reportPrivateImportUsage]
        total = torch.linalg.vector_norm(norms)
        shares = (self.norm / ((total if self.by == "total" else norms) + EPS)).clamp_max(1.0)
        factors = shares if self.by == "total" else list(shares.unbind())
        torch._foreach_mul_(grads, factors)  # pyright: ignore[reportPrivateImportUsage]
        return total


def clipping_of(optim: OptimConfig) -> Clipping | None:
    """As the settings ask for; None where they do not."""
    return Clipping(optim.clip, optim.clip_by) if optim.clip else None
