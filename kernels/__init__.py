"""The fused element-wise and reduction work: one folder a kernel, in each of which ``reference`` is the definition."""

from fastvicreg.kernels.loss import vicreg_loss

__all__ = ["vicreg_loss"]
