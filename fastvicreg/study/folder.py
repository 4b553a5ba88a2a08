"""A study's folder: the settings that all of its runs share, and each run's figures. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvicreg.errors import UserError
from fastvicreg.train.run_folder import Lock

SETTINGS, RESULT = "study.json", "result.json"


class StudyFolder:
    """The folder of one study, held against other processes until ``close``."""

    def __init__(self, path: Path, name: str, asked: Mapping[str, Any]) -> None:
        """Open it, or make it; ``asked`` are the settings that a continued study must have as before.

        ``UserError`` where it holds anything else, is in use, or cannot be written.
        """
        self.path = path
        file = path / SETTINGS
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path} is a file: give a folder.")
        if path.is_dir() and any(path.iterdir()) and not file.is_file():
            raise UserError(f"--out {path} holds something else than a study: give another --out.")
        self.kept: dict[str, Any] = {"study": name, "settings": dict(asked)}
        if file.is_file():
            self.kept = self._same(file, name, asked)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(path)
        except OSError as error:
            raise UserError(f"cannot write to --out {path}: {error.strerror or error}.") from error
        self.keep()

    def _same(self, file: Path, name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        kept = read_json(file)
        if kept is None or kept.get("study") != name or not isinstance(kept.get("settings"), dict):
            raise UserError(f"--out {self.path}: {SETTINGS} is not of study {name}: give another --out.")
        # A setting that another version did not keep is the one that it goes on with.
        kept["settings"] = dict(asked) | kept["settings"]
        if kept["settings"] != dict(asked) and not self.begun():
            return self.kept  # a mistake ended it before its first run
        for key, value in asked.items():
            if (before := kept["settings"][key]) != value:
                flag = "--" + key.replace("_", "-")
                raise UserError(
                    f"{self.path} was started with {flag} {before}, not {value}: continue with the same, or give "
                    "another --out."
                )
        return kept

    def begun(self) -> bool:
        """Whether there is anything of a run."""
        return any(child.is_dir() for child in self.path.iterdir())

    def keep(self, **facts: Any) -> None:
        """Write the settings and ``facts`` that a continued study must find."""
        self.kept |= facts
        write_whole(self.path / SETTINGS, self.kept)

    def finished(self) -> list[str]:
        """Names of all runs that have figures, of whatever was asked for when they ran."""
        return sorted(file.parent.name for file in self.path.glob(f"*/{RESULT}"))

    def result(self, run: str) -> dict[str, Any] | None:
        """The figures of a finished run; None where it has none yet."""
        return read_json(self.path / run / RESULT)

    def finish(self, run: str, figures: Mapping[str, Any]) -> None:
        """Write a run's figures: it will not be repeated."""
        write_whole(self.path / run / RESULT, figures)

    def close(self) -> None:
        """Let another process go on."""
        self._lock.release()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that ``path`` holds; None where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` whole or not at all; ``UserError`` where it cannot be written."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(content, indent=1) + "\n")
        draft.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error
