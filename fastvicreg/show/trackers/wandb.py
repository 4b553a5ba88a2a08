"""Weights & Biases, online where there is a key for it, else as files that ``wandb sync`` sends later."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Literal

import wandb

from fastvicreg.show.trackers import Opened, Point

PROJECT = "fastvicreg"
ID = ".wandb-id"
"""File in the run's folder that holds the identity under which a resumed run goes on."""


class WeightsAndBiases:
    """One W&B run for a run's folder, resumed with it. W&B's own variables (WANDB_MODE, WANDB_PROJECT ...) hold."""

    def __init__(self, opened: Opened) -> None:
        asked = wandb.setup().settings
        mode: Literal["offline"] | None = None
        self.note = ""
        # Without a key it would ask for one on the terminal, in the middle of a run.
        if asked.mode == "online" and not wandb.login(prompt=False, verify=False):
            mode = "offline"
            self.note = (
                f"W&B has no key here (wandb login): its files in {opened.folder / 'wandb'} wait for wandb sync."
            )
        self._run = wandb.init(
            project=asked.project or PROJECT,
            name=opened.folder.name,
            dir=str(opened.folder),
            id=_identity(opened),
            resume="allow",
            config=dict(opened.settings),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, points: Sequence[Point]) -> None:
        """Log every value under "group/name", over "step"."""
        for group, step, values in points:
            self._run.log({"step": step, **{f"{group}/{name}": value for name, value in values.items()}})

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self) -> None:
        self._run.finish()


def _identity(opened: Opened) -> str:
    file = opened.folder / ID
    if opened.resumed_at and file.exists():
        return file.read_text().strip()
    identity = uuid.uuid4().hex[:12]
    file.write_text(identity + "\n")
    return identity
