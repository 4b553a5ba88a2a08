"""Watches over a run's rows: each says one line, once, when something goes wrong that the loss alone does not show."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from fastvicreg.contracts import Spread
from fastvicreg.show.metrics import data_wait_share

WINDOW, LIMIT, SETTLING = 50, 0.1, 10
"""``DataWaitWatch``: steps that are looked at together, the share it bears, and first steps that it overlooks."""

COLLAPSED, PATIENCE = 0.05, 20
"""``CollapseWatch``: share of the healthy spread below which embeddings collapse, and steps in a row it waits.

A fresh expander starts near .3 to .4; without the variance term the demo is below .05 after 20 steps.
"""

LINE = 2.0
"""``CollapseWatch``: RankMe below which embeddings lie along one line, where dozens of dimensions are possible."""


class CollapseWatch:
    """Notices, once each, that the embeddings collapse (views then agree because all images do) or lie along a line."""

    def __init__(self, spread: Spread, *, base_lr: float) -> None:
        self._spread = spread
        self._base_lr = base_lr
        self._low = 0
        self._since: dict[tuple[str, str], int] = {}
        """Step since which a figure of a side has been low, by (figure, side)."""
        self._told: set[str] = set()

    def see(self, rows: Sequence[Mapping[str, Any]], spreads: Sequence[Mapping[str, Any]] = ()) -> str | None:
        """A line to show, the first time that the spread was too low for ``PATIENCE`` steps in a row.

        ``rows`` are of steps, with the mean over sides, which hides a side that collapses alone; ``spreads`` are
        ``SpreadLog``'s, with each side's deviation and rank.
        """
        return self._mean(rows) or self._sides(spreads)

    def _mean(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        for row in rows:
            std = row.get(self._spread.part)
            low = std is not None and std < COLLAPSED * self._spread.healthy  # false for NaN: a step that did not count
            self._low = self._low + 1 if low else 0
            if self._low >= PATIENCE and "std" not in self._told:
                self._told.add("std")
                return (
                    f"step {row['step']}: the embeddings are collapsing: {self._spread.part} {std:.2g}, under "
                    f"{COLLAPSED:.0%} of its target {self._spread.healthy:.3g} for {PATIENCE} steps; {self._cause()}."
                )
        return None

    def _sides(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        for row in rows:
            most = row["rank_most"]
            for side in [name.removeprefix("std_") for name in row if name.startswith("std_")]:
                std, rank = row[f"std_{side}"], row[f"rank_{side}"]
                figures = f"std {std:.2g} of its target, rank {rank:.1f} of at most {most}, for {PATIENCE} steps"
                if self._is_time("std", side, row["step"], low=std < COLLAPSED):
                    return f"step {row['step']}: side {side}'s embeddings are collapsing: {figures}; {self._cause()}."
                if self._is_time("rank", side, row["step"], low=rank < min(LINE, 1 + COLLAPSED * (most - 1))):
                    cause = self._spread.rank_cause or self._cause()
                    return f"step {row['step']}: side {side}'s embeddings lie along one line: {figures}; {cause}."
        return None

    def _is_time(self, figure: str, side: str, step: int, *, low: bool) -> bool:
        """Whether to tell of a figure now; a collapse brings a low rank with it, which needs no second line."""
        if not low:
            self._since.pop((figure, side), None)
            return False
        since = self._since.setdefault((figure, side), step)
        if step - since < PATIENCE or self._told & {figure, "std"}:
            return False
        self._told.add(figure)
        return True

    def _cause(self) -> str:
        return self._spread.cause or f"likely the learning rate: give a lower --base-lr than {self._base_lr:g}"


class DataWaitWatch:
    """Notices, once, that a run waits for its data."""

    def __init__(self, pipeline: str, *, more_workers: bool = True) -> None:
        """``more_workers`` where the engine has fewer than there are cores, so that the advice may name them."""
        self._pipeline = pipeline
        self._remedies = ["--workers"] * more_workers + ["--pipeline ffcv"] * (pipeline != "ffcv")
        self._overlook = SETTLING  # compilers and an empty pipeline hold up the first
        self._recent: deque[Mapping[str, Any]] | None = deque(maxlen=WINDOW)  # None: has been told

    def see(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """A line to show, the first time that the last ``WINDOW`` steps lost more than ``LIMIT`` of their time."""
        for row in rows:
            if self._recent is None:
                return None
            if self._overlook:
                self._overlook -= 1
                continue
            self._recent.append(row)
            if len(self._recent) == WINDOW and (share := data_wait_share(self._recent)) > LIMIT:
                self._recent = None
                return self._warning(share)
        return None

    def _warning(self, share: float) -> str:
        may_help = f", {' or '.join(self._remedies)} may help" if self._remedies else ""
        return (
            f"data_wait {share:.0%} of the last {WINDOW} steps: the {self._pipeline} pipeline holds the run back; "
            f"fastvicreg bench swap shows by how much{may_help}."
        )
