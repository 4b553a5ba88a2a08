"""A dataset behind gs:// or hf://, with a server of this process for the clients of these packages."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clouds import Cloud, google_storage, hub

from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.fetch.placed import placed
from fastvicreg.pipelines.fetch.systems import google_client
from fastvicreg.pipelines.formats.dataset import DatasetSource


@dataclass
class Served:
    """A cloud, the dataset in it, and the address of that."""

    cloud: Cloud
    root: Path
    address: str

    def opened(self, kind: str, **options: float) -> DatasetSource:
        return open_source(placed(f"{self.address}/{kind}", **options).path)  # type: ignore[arg-type]


@contextlib.contextmanager
def served_by(protocol: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """``root`` as a bucket ("gs"), or as a dataset of the hub ("hf"); this user's own credentials are out of sight."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    if protocol == "gs":
        google_client().clear_instance_cache()  # which has another test's credentials
        with google_storage(root.parent) as cloud:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.address)
            yield Served(cloud, root, f"gs://{root.name}")
        return
    constants = importlib.import_module("huggingface_hub.constants")
    (root.parent / "user").mkdir()
    (root.parent / "user/name").symlink_to(root)
    with hub(root.parent) as cloud:
        template = f"{cloud.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in (
            ("ENDPOINT", cloud.address),
            ("HUGGINGFACE_CO_URL_TEMPLATE", template),
            ("HF_TOKEN_PATH", str(root.parent / "none")),
        ):
            monkeypatch.setattr(constants, name, value)
        yield Served(cloud, root, "hf://datasets/user/name")
