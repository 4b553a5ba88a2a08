"""What a run records: every step's terms and rates, every evaluation; as JSON lines and for TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvicreg.contracts import Cursor, Terms
from fastvicreg.errors import UserError

FILE = "metrics.jsonl"


class Recorder:
    """Keeps a step's scalars on the device until ``flush`` reads them all in one copy.

    A row holds epoch, step (1 is the first), total, the objective's parts (unweighted), lr, images_per_s and
    data_wait (share of the step's wall time spent waiting for crops).
    """

    def __init__(self, folder: Path, *, resumed_at: int = 0) -> None:
        """Continue after step ``resumed_at``: later rows of an earlier run are dropped, as they will be made again."""
        from torch.utils.tensorboard import SummaryWriter

        self._pending: list[tuple[dict[str, Any], tuple[str, ...], Tensor]] = []
        resumes = resumed_at and (folder / FILE).exists()
        kept = [row for row in read(folder) if row["step"] <= resumed_at] if resumes else []
        # Renamed into place, so that a kill at this moment leaves the earlier log whole.
        draft = folder / f".{FILE}.tmp"
        self._file = draft.open("w", buffering=1)
        for row in kept:
            self._write(row)
        draft.rename(folder / FILE)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None)
        self._clock = time.perf_counter()

    def start_clock(self) -> None:
        """The next step begins now: what came between steps is not charged to it."""
        self._clock = time.perf_counter()

    def step(self, step: int, cursor: Cursor, terms: Terms, *, lr: float, images: int, data_wait: float) -> None:
        """Take one step's terms without reading them; ``images`` is the total batch, ``data_wait`` in seconds."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        row = {"epoch": cursor.epoch, "step": step}
        rates = {"lr": lr, "images_per_s": images / seconds, "data_wait": min(1.0, data_wait / seconds)}
        names = ("total", *terms.parts)
        values = torch.stack([terms.total.float(), *(part.float() for part in terms.parts.values())])
        self._pending.append((row | rates, names, values))

    def flush(self) -> list[dict[str, Any]]:
        """Read, write and return the rows since the last flush."""
        if not self._pending:
            return []
        pending, self._pending = self._pending, []  # before a read that a failed device makes raise
        columns = torch.stack([values for _, _, values in pending]).tolist()
        rows = []
        for (row, names, _), values in zip(pending, columns, strict=True):
            head = {"epoch": row["epoch"], "step": row["step"]}
            rows.append(head | dict(zip(names, values, strict=True)) | {k: v for k, v in row.items() if k not in head})
        for row in rows:
            self._write(row)
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    self._board.add_scalar(f"train/{name}", value, row["step"])
        return rows

    def evaluation(self, step: int, epoch: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Write one evaluation's row and return it."""
        row = {"epoch": epoch, "step": step, **values}
        self._write(row)
        for name, value in values.items():
            self._board.add_scalar(f"eval/{name}", value, step)
        self._board.flush()
        return row

    def close(self) -> None:
        """Flush both files."""
        self.flush()
        self._file.close()
        self._board.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        # JSON has no NaN: a reader in another language must be able to parse every line.
        plain = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}
        self._file.write(json.dumps(plain) + "\n")


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run; a last line cut short by a kill is left out. ``UserError`` where there are none."""
    path = Path(folder) / FILE
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {FILE}: it is not the folder of a run.") from None
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def rank_me(features_NF: Tensor) -> float:
    """RankMe (Garrido et al. 2023, eq. 1): exp of the entropy of the normalised singular values.

    Between 1 (collapse to a line) and min(N, F). Blind to scale: read it beside the standard deviation.
    """
    features_NF = features_NF.double()
    # Of the smaller Gram matrix: an SVD of N x F would take minutes at the size of an ImageNet split.
    narrow = features_NF.shape[1] <= features_NF.shape[0]
    gram = features_NF.T @ features_NF if narrow else features_NF @ features_NF.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))
