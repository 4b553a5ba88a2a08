"""Which files a person means who names traces: files, or folders that hold one a rank."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastvicreg.errors import UserError


def trace_files(paths: Iterable[str | Path]) -> list[Path]:
    """Files as given; of a folder its traces (.json, .json.gz) in order of name.

    ``UserError`` where there is none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.name.endswith((".pt.trace.json", ".pt.trace.json.gz")))
            found = found or sorted(p for p in path.iterdir() if p.name.endswith((".json", ".json.gz")))
            if not found:
                raise UserError(f"{path} holds no trace: give a .json or .json.gz file, or a folder of such files.")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"no trace at {path}: give a .json or .json.gz file, or a folder of such files.")
    return files
