"""A run's logs: JSON lines, one a step, continued by a resumed run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvicreg.json_text import parse_json


class Lines:
    """An open log, whose rows up to the step that a run goes on from are kept: later ones will be made again."""

    def __init__(self, path: Path, *, resumed_at: int = 0) -> None:
        resumes = resumed_at and path.exists()
        kept = [row for row in read_lines(path) if row["step"] <= resumed_at] if resumes else []
        # Renamed into place, so that a kill at this moment leaves the earlier log whole.
        draft = path.with_name(f".{path.name}.tmp")
        self._file = draft.open("w", buffering=1)
        for row in kept:
            self.write(row)
        draft.rename(path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; JSON has no NaN, and a reader in another language must be able to parse every line."""
        plain = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}
        self._file.write(json.dumps(plain) + "\n")

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(parse_json(line))
        except ValueError:
            break
    return rows
