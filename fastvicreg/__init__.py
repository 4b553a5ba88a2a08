"""VICReg training with data loading, kernels and loop that are profiled and swapped independently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastvicreg.forked import watch_forks

if TYPE_CHECKING:
    from fastvicreg.pretrained import load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]

watch_forks()


def __getattr__(name: str) -> Any:
    # Not at once: the command line's help imports this package, and no torch.
    if name != "load_encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastvicreg.pretrained import load_encoder

    return load_encoder
