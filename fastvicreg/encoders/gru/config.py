"""Settings of the GRU encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.encoders.gru.network import GRU


@dataclass(frozen=True)
class GRUConfig:
    """The text encoder of VSE++ (Faghri et al., arXiv 1707.05612), which the paper's Table 3 takes."""

    takes: ClassVar[str] = "text"

    arch: str = "gru"
    """gru."""
    width: int = 1024
    """Features: the recurrent state's width."""
    embedding: int = 300
    """Width of a word's embedding."""
    vocabulary: int = 12000
    """Words that are told apart: the captions' most frequent, rarer ones count as one."""

    def check(self) -> None:
        """``UserError`` for a value that no network can have."""
        for name, least in (("width", 2), ("embedding", 1), ("vocabulary", 8)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"--{name} {value} is too small: give {least} or more.")

    def build(self) -> GRU:
        """A network with fresh weights, drawn from torch's global generator."""
        from fastvicreg.encoders.gru.network import GRU

        self.check()
        return GRU(self.width, self.embedding, self.vocabulary)
