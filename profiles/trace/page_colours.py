"""Colours of stages, of the device's parts and of idle's causes, legible on a light and on a dark page."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from fastvicreg.profiles.trace.gaps import CAUSES
from fastvicreg.profiles.trace.stages import OTHER

PART_COLOURS = {"compute": "#2f6fde", "comm": "#8957e5", "copy": "#2f9e58"}
CAUSE_COLOURS = dict(
    zip(
        CAUSES,
        ("#d1495b", "#e07a3f", "#b5649a", "#8b6d4f", "#d9a441", "#7d8796", "#a4adba", "#c9ced6"),
        strict=True,
    )
)
_BY_WORD = {"data": "#d1495b", "forward": "#2f6fde", "loss": "#54a0ee", "backward": "#2b4a8f", "optim": "#8957e5"}
"""By a word in the stage's name, so that a stage looks alike in every trace."""
_FURTHER = ("#2f9e58", "#e07a3f", "#3aa6b9", "#d9a441", "#b5649a", "#6e8b3d")
_OTHER = "#98a1af"


def stage_colours(names: Iterable[str]) -> list[str]:
    """One colour a stage."""
    further = itertools.cycle(_FURTHER)
    found = []
    for name in names:
        known = (colour for word, colour in _BY_WORD.items() if word in name.lower())
        found.append(_OTHER if name == OTHER else next(known, None) or next(further))
    return found
