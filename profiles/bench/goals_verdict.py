"""What one H100 or H200 is to reach, and whether figures of a GPU reach it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OFFICIAL = "official"
"""What the names of its step's rows begin with."""

BARE = "parts alone"
"""What the name of a row ends with that is no training: nothing there looks at what is not finite."""

SPEED, RATE, FED, BATCH = "times the official step", "views/s of a step", "end to end, of synthetic", "batch in a step"
NAMES = {"speed": SPEED, "rate": RATE, "fed": FED, "batch": BATCH}
"""As ``--only`` takes them, and as a row's "goal" has them."""

GOALS: Mapping[str, Mapping[str, float]] = {
    "H100": {SPEED: 2.5, RATE: 6000, FED: 0.97},
    "H200": {SPEED: 2.5, RATE: 7500, FED: 0.97, BATCH: 2048},
}
"""By what stands in the name of the GPU."""


def judged(goal: str, gpu: str, value: float | None, **more: Any) -> dict[str, Any]:
    """A row; ``value`` None where it could not be measured, for the reason that ``more`` has as "detail"."""
    wanted = next((goals.get(goal) for name, goals in GOALS.items() if name in gpu), None)
    if value is None:
        verdict = "not measured"
    elif wanted is None:
        verdict = f"no goal of {gpu or 'a CPU'}"
    else:
        verdict = "met" if value >= wanted else "MISSED"
    return {"goal": goal, "value": value, "wanted": wanted, "verdict": verdict, **more}


def of_step(measured: Iterable[Mapping[str, Any]], gpu: str) -> list[dict[str, Any]]:
    """SPEED and RATE by rows of ``bench step``: of whichever of our ways is the fastest."""
    ran = [row for row in measured if row.get("ms") and row.get("ratio")]
    ours = [row for row in ran if not row["variant"].startswith(OFFICIAL) and not row["variant"].endswith(BARE)]
    if not ours:
        return [judged(goal, gpu, None, detail="no step of ours has run") for goal in (SPEED, RATE)]
    rows = []
    for goal, figure in ((SPEED, "ratio"), (RATE, "views_per_s")):
        best = max(ours, key=lambda row, figure=figure: row[figure])
        detail = f"{best['variant']}, batch {best['batch']}"
        rows.append(judged(goal, gpu, best[figure], spread=best["spread"], detail=detail))
    return rows


def table(figures: Mapping[str, Sequence[Mapping[str, Any]]], gpu: str) -> str:
    """Markdown of the goals by the rows of ``bench all``: its step parts and its part "goals"."""
    steps = [row for part, found in figures.items() if part.startswith("step") for row in found]
    found = [*of_step(steps, gpu), *figures.get("goals", ())]
    seen = {row["goal"] for row in found}
    found += [judged(goal, gpu, None, detail="left out") for goal in (FED, BATCH) if goal not in seen]
    lines = ["", "| goal | wanted | seen | |", "|---|---|---|---|"]
    for row in found:
        value, wanted = ("" if one is None else f"{one:,.4g}" for one in (row["value"], row["wanted"]))
        lines.append(f"| {row['goal']} | {wanted} | {value} | {row['verdict']} ({row.get('detail', '')}) |")
    return "\n".join(lines) + "\n"
