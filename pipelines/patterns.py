"""Shell patterns and brace lists that name several files: ``hub/*-train-*.tar``, ``train-{0000..0146}.tar``."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from fastvicreg.errors import UserError

MOST = 1_000_000
"""Files that a brace range may name."""
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(path: str | Path) -> bool:
    """Whether ``path`` is no file or folder of this name but may stand for several."""
    text = str(path)
    return not Path(path).exists() and (glob.has_magic(text) or bool(_BRACE.search(text)))


def expand(pattern: str | Path) -> list[Path]:
    """The files that ``pattern`` names, each once, in the order of their folders, then of their names.

    ``UserError`` where it names none, or a brace list names one that is not there.
    """
    found: dict[Path, None] = {}
    for name in braces(str(pattern)):
        matches = glob.glob(name) if glob.has_magic(name) else [name]
        for match in matches:
            if not Path(match).is_file():
                raise UserError(f"{match} is named by {pattern} and is no file: copy it again, or give another range.")
            found[Path(match)] = None
        if len(found) > MOST:
            raise UserError(f"{pattern} names more than {MOST:,} files: give a smaller range.")
    if not found:
        raise UserError(f"no file matches {pattern}: the pattern must stand in quotes and name existing files.")
    # By length first: shard 1,000,000 has a digit more.
    return sorted(found, key=lambda path: (path.parent, len(path.name), path.name))


def braces(text: str) -> Iterator[str]:
    """``text`` once for each choice of its brace lists and ranges, as a shell would write them out."""
    brace = _BRACE.search(text)
    if brace is None:
        yield text
        return
    numbers = _RANGE.fullmatch(brace[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if last - first >= MOST:
            raise UserError(f"{{{brace[1]}}} in {text} names more than {MOST:,} files: give a smaller range.")
        width = max(len(numbers[1]), len(numbers[2])) if numbers[1][0] == "0" else 0
        choices: list[str] = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = brace[1].split(",")
    for choice in choices:
        yield from braces(text[: brace.start()] + choice + text[brace.end() :])
