"""What a modality is: how a member's bytes become a view. One class each, in files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, cast

import numpy as np

from fastvicreg.contracts import Source
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.registry import resolve

MODALITIES: Mapping[str, str] = {
    "text": "fastvicreg.pipelines.pairs.text:Text",
    "waveform": "fastvicreg.pipelines.pairs.sound:Waveform",
    "spectrogram": "fastvicreg.pipelines.pairs.sound:Spectrogram",
}
"""Names to classes, built from a ``PairConfig``. Images are not here: engines and kernels make their views."""


class Modality(Protocol):
    """How the bytes of a member become what an encoder takes."""

    name: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    """Of members that hold it, the preferred one first."""

    def view(self, encoded: bytes | memoryview, key: np.uint64 | None) -> np.ndarray:
        """A view of the member, of a shape that is the same for all.

        ``key`` is a stream of ``pipelines.rng`` that random choices come from; None: evaluation's fixed view.
        ``DecodeError`` where the bytes hold nothing of the kind.
        """
        ...

    def views(self, encoded: bytes | memoryview) -> list[np.ndarray]:
        """All that evaluation compares of the member: each of its captions, or the one view that it has."""
        ...

    def described(self) -> str:
        """Every setting that a view depends on: two of the same words make the same views."""
        ...


def build(name: str, config: PairConfig) -> Modality:
    """The modality called ``name``; ``UserError`` where it needs what is not installed."""
    return cast(Modality, resolve("modality", name, MODALITIES)(config))


def modality_of(source: Source) -> Modality | None:
    """What the samples of ``source`` are; None: images."""
    return cast(Any, getattr(source, "modality", None))
