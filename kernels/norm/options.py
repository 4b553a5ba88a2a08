"""Settings of a norm, as its implementations take them."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    """Everything but the tensors."""

    relu: bool = True
    """Whether ReLU follows."""
    views: int = 1
    """Equal parts of the batch, one after another, each with statistics of its own."""
    momentum: float = 0.1
    """Share of the new statistics in the running ones."""
    eps: float = 1e-5
    """Added to the variance."""
    ranks: int = 1
    """Processes whose rows make the batch."""
    group: str = ""
    """Name of their process group."""
    recompute: bool = False
    """Whether ``recompute.recomputing`` may drop the output and compute it again in backward."""
