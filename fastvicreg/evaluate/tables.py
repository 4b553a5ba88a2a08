"""Tables on the screen: the first column to the left, the others to the right; nothing is cut in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows``; names of classes stand as they are, whatever brackets they hold."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(Text("".join(c if c.isprintable() else " " for c in text)) for text in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
