"""The fused element-wise and reduction work: one folder a kernel, in each of which ``reference`` is the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvicreg.kernels.loss import vicreg_loss

__all__ = ["vicreg_loss"]


def __getattr__(name: str) -> Any:
    # Imported on demand: the command line reads ``dispatch`` before it loads torch.
    if name == "vicreg_loss":
        from fastvicreg.kernels.loss import vicreg_loss

        return vicreg_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
