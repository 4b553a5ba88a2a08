"""Figures of a ranking: accuracies with their confidence intervals, class by class, and what is taken for what.

M queries, C classes, K classes named for a query, best first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

Z95 = 1.959963984540054
"""Standard deviations that 95 % of a normal distribution lie within."""


def wilson(correct: int, total: int, z: float = Z95) -> tuple[float, float]:
    """(low, high) in percent of a share's 95 % confidence interval: Wilson 1927, which stays within 0 and 100."""
    share, squared = correct / total, z * z / total
    middle = share + squared / 2
    half = z * math.sqrt(share * (1 - share) / total + squared / (4 * total))
    low, high = (100 * (middle + sign * half) / (1 + squared) for sign in (-1, 1))
    return max(0.0, low), min(100.0, high)  # rounding may leave it by an ulp


def accuracies(top_MK: Tensor, answers_M: Tensor, classes: int) -> dict[str, float]:
    """``accuracy`` and, where more than five are to choose from, ``top5``, in percent, with ``_low`` and ``_high``."""
    right_MK = top_MK == answers_M[:, None]
    found: dict[str, float] = {}
    for name, within in (("accuracy", 1), ("top5", 5)):
        if within > 1 and classes <= within:
            continue
        correct = int(right_MK[:, :within].any(1).sum())
        low, high = wilson(correct, len(answers_M))
        found |= {name: 100 * correct / len(answers_M), f"{name}_low": low, f"{name}_high": high}
    return found


def confusion(predicted_M: Tensor, answers_M: Tensor, classes: int) -> Tensor:
    """count_CC, int64: rows are the answers, columns what they were taken for."""
    return (answers_M * classes + predicted_M).cpu().bincount(minlength=classes**2).view(classes, classes)


def by_class(count_CC: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each class that was asked for: its images, its accuracy, and what else it is taken for most."""
    rows = []
    for number, taken_C in enumerate(count_CC):
        if not (total := int(taken_C.sum())):
            continue
        correct = int(taken_C[number])
        low, high = wilson(correct, total)
        others_C = taken_C.clone()
        others_C[number] = 0
        worst = int(others_C.argmax())
        mistaken = int(others_C[worst])
        rows.append(
            {
                "class": classes[number] if number < len(classes) else str(number),
                "images": total,
                "accuracy": 100 * correct / total,
                "accuracy_low": low,
                "accuracy_high": high,
                "taken_for": (classes[worst] if worst < len(classes) else str(worst)) if mistaken else "",
                "taken_for_share": 100 * mistaken / total,
            }
        )
    return rows
