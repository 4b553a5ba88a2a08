"""Settings of the text transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.encoders import check_blocks
from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.encoders.text_transformer.network import TextTransformer

HEAD = 64
"""Width of an attention head."""


@dataclass(frozen=True)
class TextTransformerConfig:
    """A transformer of CLIP's text encoder's size (Radford et al., arXiv 2103.00020, section 2.4).

    Unlike there words are whole, each attends to all others, and the features are those of a caption's first token
    (BERT's), which stands before its words.
    """

    takes: ClassVar[str] = "text"

    arch: str = "text_transformer"
    """text_transformer."""
    width: int = 512
    """Features, in attention heads of 64; below that in one, an even number."""
    depth: int = 12
    """Blocks."""
    vocabulary: int = 12000
    """Words that are told apart: the captions' most frequent, rarer ones count as one."""
    drop_path: float = 0.0
    """Stochastic depth: share of the samples for which the last block's residual branches are left out in training,
    the first block's never, others between."""

    def check(self) -> None:
        """``UserError`` for a value that no network can have."""
        for name, least in (("width", 2), ("vocabulary", 8)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"--{name} {value} is too small: give {least} or more.")
        if self.width % (step := HEAD if self.width > HEAD else 2):
            raise UserError(f"--width {self.width} does not divide into heads: give a multiple of {step}.")
        check_blocks(self.depth, self.drop_path)

    def build(self) -> TextTransformer:
        """A network with fresh weights, drawn from torch's global generator."""
        from fastvicreg.encoders.text_transformer.network import TextTransformer

        self.check()
        return TextTransformer(self.width, max(1, self.width // HEAD), self.depth, self.vocabulary, self.drop_path)
