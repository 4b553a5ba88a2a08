"""One forward and backward of a norm on data made here, to see whether an implementation works on this machine."""

from __future__ import annotations

import torch

from fastvicreg.kernels.norm.functional import batch_norm_act


def trial(impl: str, device: str) -> str:
    """What came of it; raises what the implementation raises."""
    x = torch.linspace(-1, 1, 8 * 16 * 4, device=device).view(8, 16, 2, 2).to(memory_format=torch.channels_last)
    x.requires_grad_()
    y = batch_norm_act(x, torch.ones(16, device=device), torch.zeros(16, device=device), impl=impl)
    y.square().sum().backward()
    return f"forward and backward, mean {float(y.detach().mean()):.2f}"
