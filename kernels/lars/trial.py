"""One LARS update of a weight made here, to see whether an implementation works on this machine."""

from __future__ import annotations

import torch

from fastvicreg.kernels.lars import lars_update


def trial(impl: str, device: str) -> str:
    """What came of it; raises what the implementation raises."""
    weight, grad, buffer = (make(4, 4, device=device) for make in (torch.ones, torch.ones, torch.zeros))
    lars_update([weight], [grad], [buffer], lr=0.1, weight_decay=0.0, momentum=0.9, eta=0.001, impl=impl)
    return f"one step, weight {float(weight[0, 0]):.4f}"
