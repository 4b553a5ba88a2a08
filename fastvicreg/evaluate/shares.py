"""A share of the labelled images: drawn alike from every class, or listed in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError


def drawn_share(source: Source, percent: float, *, seed: int) -> list[int]:
    """Indices, ascending, of ``percent`` of every class's images, drawn without replacement.

    ``UserError`` where that rounds to no image of a class.
    """
    label_N = np.array([source.label(index) for index in range(len(source))])
    rng, chosen = np.random.default_rng(seed), []
    for label in np.unique(label_N):
        members = (label_N == label).nonzero()[0]
        count = round(len(members) * percent / 100)
        if not count:
            name = source.classes[label] if label < len(source.classes) else str(label)
            raise UserError(
                f"--percent {percent:g} leaves the class {name!r} with none of its {len(members)} images: give "
                f"{min(100.0, 100 / len(members)):.3g} or more."
            )
        chosen += rng.choice(members, count, replace=False).tolist()
    return sorted(chosen)


def named_in(file: str | Path, source: Source) -> list[int]:
    """Indices of the images that ``file`` names, one a line, by file name without its ending.

    Folders before it matter only where several images are called the same. ``UserError`` where the file cannot be
    read, names an image that is not there or that is not one alone, or leaves a class without one.
    """
    try:
        names = [line.strip() for line in Path(file).read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --split {file}: {getattr(error, 'strerror', None) or error}.") from error
    called: dict[str, list[int]] = {}
    for index in range(len(source)):
        called.setdefault(Path(source.name(index)).stem, []).append(index)
    if missing := [name for name in names if Path(name).stem not in called]:
        raise UserError(
            f"--split {file}: {len(missing):,} of its {len(names):,} images are not in the training data, such as "
            f"{missing[0]}; there they are called {source.name(0)}."
        )
    chosen = sorted({_the_one(name, called[Path(name).stem], source, file) for name in names})
    there = {source.label(index) for index in chosen}
    if absent := [name for number, name in enumerate(source.classes) if number not in there]:
        more = f" and {len(absent) - 1} more classes" if len(absent) > 1 else ""
        raise UserError(f"--split {file} names no image of the class {absent[0]!r}{more}: give some of every class.")
    return chosen


def _the_one(name: str, same: list[int], source: Source, file: str | Path) -> int:
    """The image that ``name`` means among the ``same``, which are called alike but for their folders."""
    if len(same) == 1:
        return same[0]
    asked = Path(name).with_suffix("").parts
    fit = [index for index in same if Path(source.name(index)).with_suffix("").parts[-len(asked) :] == asked]
    if len(fit) != 1:
        raise UserError(
            f"--split {file}: {name} could be any of {len(fit) or len(same)} training images, such as "
            f"{source.name(same[0])} and {source.name(same[1])}: write the folder before the name."
        )
    return fit[0]
