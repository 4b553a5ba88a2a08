"""``fastvicreg bench compare OLD.json NEW.json``: what became slower, beyond the noise of the repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from fastvicreg.commandline import parse, share


@dataclass(frozen=True)
class CompareOptions:
    """Compare two results of one benchmark, row by row: medians, their spread, and what changed.

    The noise is that of the repeats within each result: measure both on an otherwise idle machine, since a load that
    lasts through one of them counts as a change.
    """

    old: Annotated[str, tyro.conf.Positional]
    """A file that fastvicreg bench PART --json wrote."""
    new: Annotated[str, tyro.conf.Positional]
    """A later one, of the same benchmark on the same machine."""
    fail_above: str | None = None
    """Exit 1 where a row is slower by more than this, such as 5%, and by more than the noise."""


def main(arguments: Sequence[str]) -> int:
    """Print the table; 1 where a row is slower than ``--fail-above`` allows."""
    options = parse(CompareOptions, arguments, "bench compare")
    limit = None if options.fail_above is None else share("--fail-above", options.fail_above)

    from fastvicreg.profiles.bench.compare import COLUMNS, compared
    from fastvicreg.profiles.measure import show

    found = compared(options.old, options.new)
    title = f"{options.old} against {options.new} (noise: both interquartile ranges)"
    show(title, [each.table_row(limit) for each in found], COLUMNS)
    return 1 if limit is not None and any(each.regressed(limit) for each in found) else 0
