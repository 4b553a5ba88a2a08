"""An optimizer that skips by a flag on the device, as LARS by the CUDA kernel does, and runs anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Skipping(torch.optim.Optimizer):
    """Gradient descent; ``grad_scale`` and ``found_inf`` are set as torch.amp.GradScaler sets them."""

    _step_supports_amp_scaling = True
    grad_scale: Tensor
    found_inf: Tensor

    def __init__(self, params: Iterable[Tensor], lr: float = 0.0) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                scale = getattr(self, "grad_scale", None)  # None too where the scaler has unscaled already
                gradient = param.grad if scale is None else param.grad / scale
                moved = param - group["lr"] * gradient
                param.copy_(torch.where(self.found_inf == 0, moved, param))
