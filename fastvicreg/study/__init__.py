"""Studies: many runs that answer one question, by name. Importing this imports no torch."""

from __future__ import annotations

from typing import Any, Protocol

from fastvicreg.registry import resolve_class

STUDIES = {
    "table4": "fastvicreg.study.table4.study:Table4",
    "cifar10": "fastvicreg.study.cifar10.study:Cifar10",
}
"""Names to the class of their options."""


class Study(Protocol):
    """A frozen dataclass of a study's options, whose file imports no torch; its docstring is the command's help."""

    def check(self) -> None:
        """``UserError`` for the first value that no study can have."""
        ...

    def run(self) -> int:
        """Carry the study out, or go on with it; returns the command's exit code."""
        ...


def study_class(name: str) -> type[Any]:
    """The options' class of the study ``name``; ``UserError`` with the nearest name where there is none."""
    return resolve_class("study", name, STUDIES)
