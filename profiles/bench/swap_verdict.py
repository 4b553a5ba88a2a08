"""What the swap test's rows are called, and which part holds the run back by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FULL = "full run"
LOADER = "loader only"
FED = "loader + augmentation only"
MODEL = "forward + backward only"
WITHOUT = {
    "data": "synthetic data",
    "augment": "no augmentation",
    "loss": "no loss",
    "optimizer": "no optimizer",
    "comm": "no communication",
}
"""Part to the row that goes without it."""


@dataclass(frozen=True)
class Verdict:
    """What holds the run back: "data", "augment", "loss", "optimizer", "comm" or "model" (forward and backward).

    ``margin`` is how many times the runner-up's cost its own is; ``separated`` whether the rounds' spread allows to
    tell the two apart.
    """

    bottleneck: str
    margin: float
    separated: bool
    text: str


MODEL_PART = "model"
SPELLED = {"augment": "augmentation", "comm": "communication", MODEL_PART: "forward and backward"}
REMEDIES = {
    "data": "--workers, --pipeline ffcv or dali (fastvicreg bench loader compares them)",
    "augment": "--kernel augment=... (fastvicreg bench augment compares them)",
    "loss": "--kernel loss=... (fastvicreg bench loss compares them)",
    "optimizer": "--kernel lars=... (fastvicreg bench lars compares them)",
    "comm": "a larger --batch-size, which spreads a step's communication over more images",
    MODEL_PART: "--precision, --device (fastvicreg bench step compares them)",
}
LEAST_SHARE = 0.01


def verdict(rows: Sequence[Mapping[str, Any]], pipeline: str) -> Verdict:
    """Of ``run``'s rows: the data where the loader alone is slower than all the rest, else the dearest of the rest."""
    by_name = {row["swap"]: row for row in rows}
    full, supply = by_name[FULL], by_name[LOADER]
    demand = by_name.get(WITHOUT["data"], full)
    times = supply["images_per_s"] / demand["images_per_s"]
    told = abs(times - 1) > supply["ratio_spread"] + demand["ratio_spread"]
    if times < 1:
        text = (
            f"data: the {pipeline} pipeline alone delivers {_rate(supply)} images/s, the rest of the run takes "
            f"{_rate(demand)} ({1 / times:.2f}x)"
        )
        if demand["images_per_s"] > full["images_per_s"]:
            text += f"; with data for free the run's {_rate(full)} become {_rate(demand)}"
        return _spoken("data", 1 / times, told, text)
    shares = {part: by_name[name]["saves"] for part, name in WITHOUT.items() if part != "data" and name in by_name}
    shares[MODEL_PART] = min(1.0, 1 / by_name[MODEL]["ratio"])
    names = WITHOUT | {MODEL_PART: MODEL}
    spreads = {part: by_name[names[part]]["ratio_spread"] for part in shares}
    top, second = sorted(shares, key=shares.__getitem__, reverse=True)[:2]
    text = (
        f"{_spell(top)}: {shares[top]:.0%} of a step; next {_spell(second)} with {shares[second]:.0%}; "
        f"the {pipeline} pipeline alone delivers {times:.1f}x what the rest of the run takes"
    )
    apart = shares[top] - shares[second] > spreads[top] + spreads[second]
    return _spoken(top, shares[top] / max(shares[second], LEAST_SHARE), apart and told, text)


def _spoken(part: str, margin: float, told: bool, text: str) -> Verdict:
    doubt = "" if told else "; within the rounds' spread, so not proven: give more --repeats"
    return Verdict(part, margin, told, f"bottleneck: {text}{doubt}. Try {REMEDIES[part]}.")


def _spell(part: str) -> str:
    return SPELLED.get(part, part)


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['images_per_s']:,.0f}"
