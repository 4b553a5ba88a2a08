"""What a run of ``bench all`` on a GPU has shown of the rows of docs/hardware.md, which say what has run where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

FILE = "hardware.md"
"""In the folder of the figures."""

Figures = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by part."""


@dataclass(frozen=True)
class Claim:
    """``row`` is the first cell of a row of docs/hardware.md; ``shown`` gives the verdicts that speak for it."""

    row: str
    shown: Callable[[Mapping[str, str], Figures], list[str]]


ENDED_WELL = ("ok", "a check FAILED")
"""Outcomes of parts that have all their rows."""


def _cut(outcomes: Mapping[str, str], *parts: str) -> list[str]:
    """What became of those that broke, were stopped or left out: more than their rows say has not been seen."""
    return [f"{part}: {outcomes[part]}" for part in parts if outcomes.get(part, "ok") not in ENDED_WELL]


def _kernel(kernel: str, *impls: str) -> Callable[[Mapping[str, str], Figures], list[str]]:
    """Verdicts of these implementations in every correctness check that was made."""

    parts = ("correctness-training", "correctness")

    def shown(outcomes: Mapping[str, str], figures: Figures) -> list[str]:
        checked = [row for part in parts for row in figures.get(part, ())]
        own = [row["verdict"] for row in checked if row["kernel"].startswith(kernel) and row["impl"] in impls]
        return _cut(outcomes, *parts) + own

    return shown


def _pipelines(*names: str) -> Callable[[Mapping[str, str], Figures], list[str]]:
    def shown(outcomes: Mapping[str, str], figures: Figures) -> list[str]:
        own = [row for row in figures.get("train", ()) if row["pipeline"] in names]
        missing = set(names) - {row["pipeline"] for row in own}
        return (_cut(outcomes, "train") if missing else []) + [row["verdict"] for row in own]

    return shown


def _parts(*parts: str) -> Callable[[Mapping[str, str], Figures], list[str]]:
    """How these parts ended."""

    def shown(outcomes: Mapping[str, str], _: Figures) -> list[str]:
        return ["pass" if outcomes[part] == "ok" else outcomes[part] for part in parts if part in outcomes]

    return shown


def _variants(part: str) -> Callable[[Mapping[str, str], Figures], list[str]]:
    """The step's variants that have a time, and why the others, or the whole part, have none."""

    def shown(outcomes: Mapping[str, str], figures: Figures) -> list[str]:
        own = ["pass" if row.get("ms") else str(row.get("note")) for row in figures.get(part, ())]
        return _cut(outcomes, part) + own

    return shown


CLAIMS = (
    Claim("training, resume, evaluation, demo", _pipelines("native")),
    Claim("several processes", lambda outcomes, figures: []),  # bench all runs on one GPU
    Claim("native, ffcv and synthetic engines", _pipelines("native", "ffcv", "synthetic")),
    Claim("dali engine", _pipelines("dali")),
    Claim("loss: reference, gram", _kernel("loss", "gram")),
    Claim("loss: cuda, triton", _kernel("loss", "cuda", "triton")),
    Claim("norm: triton", _kernel("norm", "triton")),
    Claim("LARS: cuda", _kernel("lars", "cuda")),
    Claim("augmentation: cuda", _kernel("augment", "cuda")),
    Claim("steps: eager, graphed, cached", _variants("step")),
    Claim("steps: compiled", _variants("step-compiled")),
    Claim("profile, trace, bench swap", _parts("profile", "swap")),
)


def table(outcomes: Mapping[str, str], figures: Figures, document: Mapping[str, Any]) -> str:
    """A Markdown table: each row of docs/hardware.md that a GPU can turn, and what was seen on this one."""
    gpus, versions = document["hardware"]["gpus"], document["versions"]
    where = f"{gpus[0] if gpus else 'no GPU'}, torch {versions.get('torch', '?')}, {date.today()}"
    lines = [f"Seen on {where} (commit {document['commit']}):", "", "| | NVIDIA GPU |", "|---|---|"]
    lines += [f"| {claim.row} | {verdict(claim.shown(outcomes, figures))} |" for claim in CLAIMS]
    return "\n".join(lines) + "\n"


def verdict(shown: Sequence[str]) -> str:
    """In words: all that was compared passed, some of it failed, or nothing was."""
    passed = sum(one == "pass" for one in shown)
    refused = [one for one in shown if one != "pass" and not one.startswith("FAIL")]
    failures = [one for one in shown if one.startswith("FAIL")]
    if failures:
        return f"**FAILED** {len(failures)} of {passed + len(failures)}: {failures[0]}"
    if not passed:
        return f"**not run yet** ({refused[0]})" if refused else "**not run yet**"
    return f"yes, {passed} of {passed}" + (f"; not run: {refused[0]}" if refused else "")
