"""``fastvicreg study NAME``: many runs that answer one question, continued where they were stopped."""

from __future__ import annotations

from collections.abc import Sequence

from fastvicreg.commandline import parse, part_named
from fastvicreg.study import STUDIES, Study, study_class


def main(arguments: Sequence[str]) -> int:
    """Run a study; returns the exit code."""
    if (named := part_named(arguments, "study", "study", usage, STUDIES)) is None:
        return 2
    name, rest = named
    study: Study = parse(study_class(name), rest, f"study {name}")
    study.check()
    return study.run()


def usage() -> str:
    """The help text."""
    lines = [f"  {name:12} {(study_class(name).__doc__ or '').splitlines()[0]}" for name in STUDIES]
    return "\n".join(
        [
            "usage: fastvicreg study NAME [options]",
            "",
            "Many runs that answer one question. The same command goes on where one was stopped.",
            "",
            *lines,
            "",
            "fastvicreg study NAME --help shows a study's options.",
        ]
    )
