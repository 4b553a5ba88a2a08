"""One forward and backward of the loss on data made here, to see whether an implementation works on this machine."""

from __future__ import annotations

import torch

from fastvicreg.kernels.loss import vicreg_loss


def trial(impl: str, device: str) -> str:
    """What came of it; raises what the implementation raises."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    z = torch.eye(8, 16, device=device, dtype=dtype).requires_grad_()
    total = vicreg_loss(z, z.detach() + 0.1, impl=impl).total
    total.backward()
    return f"forward and backward, total {float(total.detach()):.2f}"
