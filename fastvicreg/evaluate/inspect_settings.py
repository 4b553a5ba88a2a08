"""What is inspected and how: the settings of ``fastvicreg inspect`` that make its figures. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastvicreg.errors import UserError, at_least

LEAST = 8
"""Images below which nothing is said."""


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """Which encoder, on which images and how."""

    data: str | None = None
    """Images to look at, labelled or not; default: the validation split of the run's data."""
    checkpoint: str | None = None
    """Number of steps (500), name (step-00000500) or folder of RUN's checkpoint; default: the newest whole one."""
    encoder: str = "a"
    """a, b or target."""
    arch: str | None = None
    """Architecture that a file of weights must have; default: the one that its shapes tell."""
    stem: str | None = None
    """What a 3x3 stem in a file of weights was, where its layout does not tell: 3x3, 3x3s2 or 3x3p2."""
    images: int = 1000
    """Images to look at, spread over the data."""
    views: int = 10
    """Augmented views of each, for LiDAR and alignment."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = 0
    """Decoding threads; 0: one a core."""
    fault_count: int | None = None
    """The command ends when more images than this cannot be read, each being replaced by a neighbour ..."""
    fault_share: float | None = None
    """... and more than this share of the images; default of both: as the run was trained."""

    def check(self) -> None:
        """``UserError`` for a value that says nothing."""
        for flag, value, least in (("--images", self.images, LEAST), ("--views", self.views, 2)):
            if value < least:
                raise UserError(f"{flag} {value}: give {least} or more.")
        bounds = {"--workers": self.workers, "--fault-count": self.fault_count, "--fault-share": self.fault_share}
        at_least({flag: (value or 0, 0) for flag, value in bounds.items()})
