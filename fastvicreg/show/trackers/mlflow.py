"""MLflow: the server that MLFLOW_TRACKING_URI names, else files in ``mlruns`` beside the run's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from fastvicreg.show.trackers import Opened, Point

EXPERIMENT = "fastvicreg"
ID = ".mlflow-id"
"""File in the run's folder that holds the identity under which a resumed run goes on."""
BATCH = 1000
"""Metrics that a server takes at once."""
LONGEST = 500
"""Characters of a parameter's value that every store takes."""


class MLflow:
    """One MLflow run for a run's folder, resumed with it."""

    def __init__(self, opened: Opened) -> None:
        uri, self.note = None, ""
        if not mlflow.is_tracking_uri_set():
            # MLflow wants a database by default, which needs packages that its client alone does not bring.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            store = opened.folder.absolute().parent / "mlruns"
            uri, self.note = store.as_uri(), f"MLflow: MLFLOW_TRACKING_URI is not set, its files are in {store}."
        self._client = MlflowClient(tracking_uri=uri)
        self._id = self._resumed(opened) or self._created(opened)

    def log(self, points: Sequence[Point]) -> None:
        """Log every value under "group/name"."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(f"{group}/{name}", float(value), now, step)
            for group, step, values in points
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + BATCH])

    def flush(self) -> None:
        """Every batch is written as it comes."""

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _resumed(self, opened: Opened) -> str:
        file = opened.folder / ID
        if not (opened.resumed_at and file.exists()):
            return ""
        identity = file.read_text().strip()
        self._client.update_run(identity, status="RUNNING")
        return identity

    def _created(self, opened: Opened) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        identity = str(self._client.create_run(number, run_name=opened.folder.name).info.run_id)
        params = [Param(key, str(value)[:LONGEST]) for key, value in _flat(opened.settings)]
        self._client.log_batch(identity, params=params[:100], tags=[RunTag("folder", str(opened.folder))])
        (opened.folder / ID).write_text(identity + "\n")
        return identity


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in settings.items():
        for name, value in values.items() if isinstance(values, Mapping) else ():
            yield f"{section}.{name}", value
