"""Two results of one benchmark side by side: what changed beyond the noise of its repeats. Imports no torch itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvicreg.errors import UserError
from fastvicreg.json_text import parse_json
from fastvicreg.profiles.bench.registry import BENCHMARKS, SWAP, Benchmark, benchmark

COLUMNS = ("row", "figure", "old", "new", "slower", "noise", "verdict")


@dataclass(frozen=True)
class Comparison:
    """One row of both results; ``slower`` and ``noise`` are shares of the old median."""

    row: str
    figure: str
    old: float
    new: float
    slower: float
    """How much more time the new one takes; below 0 it is faster."""
    noise: float
    """The interquartile ranges of both, as shares of their medians, added as independent errors are."""

    def regressed(self, limit: float) -> bool:
        """Whether it is slower by more than ``limit``, and by more than the noise."""
        return self.slower > max(limit, self.noise)

    def table_row(self, limit: float | None) -> dict[str, Any]:
        """For ``measure.show``; the verdict needs no limit to tell noise from change."""
        verdict = "within noise" if abs(self.slower) <= self.noise else ("slower" if self.slower > 0 else "faster")
        if limit is not None and self.regressed(limit):
            verdict = "REGRESSION"
        return {**vars(self), "slower": f"{self.slower:+.1%}", "noise": f"{self.noise:.1%}", "verdict": verdict}


def compared(old_path: str | Path, new_path: str | Path) -> list[Comparison]:
    """Rows that both results have, of one benchmark on one machine.

    ``UserError`` for a file that is no benchmark's result, results of different benchmarks or hardware, and results
    without a common row.
    """
    old, new = (_result(Path(path)) for path in (old_path, new_path))
    if old["command"] != new["command"]:
        raise UserError(f"{old_path} is of {old['command']!r}, {new_path} of {new['command']!r}: give two of one kind.")
    for part in sorted(old["hardware"].keys() | new["hardware"].keys()):
        one, other = old["hardware"].get(part), new["hardware"].get(part)
        if one != other:
            raise UserError(
                f"{old_path} and {new_path} were measured on other hardware, {part} {one} against {other}: "
                "measure both on one machine."
            )
    kind = benchmark(old["command"].removeprefix("bench "), BENCHMARKS | SWAP)
    rows = [_by_key(result["rows"], kind) for result in (old, new)]
    common = [key for key in rows[0] if key in rows[1]]
    if not common:
        raise UserError(f"{old_path} and {new_path} have no row in common, by {', '.join(kind.key)}.")
    return [_comparison(key, rows[0][key], rows[1][key], kind) for key in common]


def _comparison(key: tuple[str, ...], old: Mapping[str, Any], new: Mapping[str, Any], kind: Benchmark) -> Comparison:
    before, after = old[kind.figure], new[kind.figure]
    slower = (after / before if kind.better == "lower" else before / after) - 1
    noise = math.hypot(*(row["spread"] for row in (old, new) if _number(row.get("spread"))))
    return Comparison(", ".join(part for part in key if part), kind.figure, before, after, slower, noise)


def _by_key(rows: Sequence[Mapping[str, Any]], kind: Benchmark) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Rows that hold a positive figure, by what they measure."""
    measured = [row for row in rows if _number(row.get(kind.figure)) and row[kind.figure] > 0]
    return {tuple(str(row.get(column, "")) for column in kind.key): row for row in measured}


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _result(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the result {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no benchmark's result: it holds no JSON ({error}).") from error
    shape = {"command": str, "hardware": dict, "rows": list}
    if (
        not isinstance(content, dict)
        or not all(isinstance(content.get(name), kind) for name, kind in shape.items())
        or not all(isinstance(row, dict) for row in content["rows"])
    ):
        raise UserError(f"{path} is no benchmark's result: give a file that fastvicreg bench PART --json wrote.")
    if content["command"].removeprefix("bench ") not in BENCHMARKS | SWAP:
        raise UserError(f"{path} is a result of {content['command']!r}: only those of fastvicreg bench PART compare.")
    return content
