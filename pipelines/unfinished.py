"""Where what is still being written to a dataset lies: the folder ``DST.partial`` beside it."""

from __future__ import annotations

from pathlib import Path

from fastvicreg.errors import UserError

READY = "ready"
"""Name of the file that says that all is written and only has to be put into its place."""


def partial_of(target: Path) -> Path:
    """The folder of an unfinished conversion to ``target``."""
    return target.with_name(f"{target.name}.partial")


def is_being_put_in_place(target: Path) -> bool:
    """Whether an addition to ``target`` is all written, but not all of it in its place."""
    return (partial_of(target) / READY).exists()


def require_in_place(target: Path) -> None:
    """``UserError`` where what was added to ``target`` is not all in its place, so that its parts do not fit."""
    if is_being_put_in_place(target):
        raise UserError(
            f"{target} is being added to at this moment: wait for convert --append, or run it again where it was "
            "interrupted."
        )
