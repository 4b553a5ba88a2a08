"""The golden loss log: small runs whose every term a refactor must leave as it is, and the file that holds them.

``python tests/support/golden.py`` writes the file anew: only for a change that means to change what is computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from images import encoded, photo
from rich.console import Console

from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.config_file import to_json
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import read
from fastvicreg.train.trainer import Trainer

FILE = Path(__file__).parents[1] / "fastvicreg" / "golden_log.json"
RATES = ("images_per_s", "data_wait")
TRAIN, VALIDATION, CLASSES = 52, 20, 4
SECONDS = 240

Rows = list[dict[str, Any]]


def write_data(root: Path) -> Path:
    """``root``/images with class folders of PNG in train/ and val/, and ``root``/train.beton of the same pixels."""
    for split, count in (("train", TRAIN), ("val", VALIDATION)):
        for number in range(count):
            path = root / "images" / split / f"class{number % CLASSES}" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(number + 100 * (split == "val"), 40 + number % 9, 36 + number % 7), "PNG"))
    for split in ("train", "val"):
        convert_dataset(root / "images" / split, root / f"{split}.beton", Settings(raw=True))
    return root


def config(root: Path, *, pipeline: str = "native", loss: str = "gram", **run: Any) -> TrainConfig:
    """Three epochs of three batches, with every kernel named, so that what "auto" takes is of no matter."""
    places: dict[str, dict[str, Any]] = {
        "native": {"data": str(root / "images")},
        "ffcv": {"data": str(root / "train.beton"), "val_data": str(root / "val.beton")},
    }
    settings: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 16,
        "device": "cpu",
        "precision": "off",
        "views": "separate",
        "log_every": 1,
        "checkpoint_every": 1,
        "kernel": (f"loss={loss}", "lars=foreach", "augment=numba", "resample=numba"),
    }
    return TrainConfig(
        data=DataConfig(**places[pipeline], pipeline=pipeline, image_size=32, recipe="official", workers=1),
        encoder=ResNetConfig(arch="resnet18", width=16, stem="3x3s2"),
        method=VICRegConfig(expander=(48, 48, 64)),
        optim=OptimConfig(base_lr=1.0, warmup_share=0.2),
        run=RunConfig(**(settings | run)),
    )


def trained(settings: TrainConfig, folder: Path, *, resume: bool = False) -> Rows:
    """The log of a run in this process, on one thread."""
    with one_thread(), Path(os.devnull).open("w") as nowhere:
        Trainer(settings, folder, resume=resume, display=Display(Console(file=nowhere))).train()
    return log(folder)


def resumed(settings: TrainConfig, folder: Path, *, after: int) -> Rows:
    """The log of a run that is stopped after so many steps and resumed."""
    trained(replace(settings, run=replace(settings.run, steps=after)), folder)
    return trained(settings, folder, resume=True)


def launched(settings: TrainConfig, folder: Path, *, processes: int) -> Rows:
    """The log of a run of several processes, which meet over gloo."""
    saved = folder.with_name(f"{folder.name}.json")
    saved.write_text(to_json(settings))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    line = (sys.executable, *torchrun, "-m", "fastvicreg", "train", "--config", str(saved), "--out", str(folder))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return log(folder)


def log(folder: Path) -> Rows:
    """Every row of a run but for its rates."""
    return [{key: value for key, value in row.items() if key not in RATES} for row in read(folder)]


@contextmanager
def one_thread() -> Iterator[None]:
    """A sum's order, and so its last bits, depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fingerprint() -> dict[str, str]:
    """All that oneDNN and MKL choose their code by: where it is the same, every bit must be."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().split("\n\n")[0].splitlines() if cpu.exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    chosen = {key: value for key, value in os.environ.items() if key.startswith(("ONEDNN_", "DNNL_", "MKL_", "ATEN_"))}
    return {
        "cpu": known.get("model name", platform.processor()),
        "flags": hashlib.sha256(known.get("flags", "").encode()).hexdigest()[:12],
        "caches": " ".join(path.read_text().strip() for path in caches),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "environment": json.dumps(chosen, sort_keys=True),
    }


def write(path: Path = FILE) -> None:
    """Train and write the file."""
    with tempfile.TemporaryDirectory() as name:
        root = write_data(Path(name))
        logs = {loss: trained(config(root, loss=loss), root / loss) for loss in ("reference", "gram")}
        logs["gram, 2 processes"] = launched(config(root), root / "two", processes=2)
    content = {"fingerprint": fingerprint(), "logs": logs}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{path}: {', '.join(f'{name}: {len(rows)} rows' for name, rows in logs.items())}")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE)
