"""kill -9 at random moments: the run that goes on ends as the one that was left alone, to the bit.

FASTVICREG_SOAK=10 kills ten times as often, in more kinds of run: `make soak`.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from images import encoded, photo
from killing import differences, killed, whole
from methods import METHOD_CONFIGS
from runs import tiny, with_dino_s_options

from fastvicreg.config import TrainConfig
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.train.steps.cached.config import CachedConfig
from fastvicreg.train.steps.compiled.config import CompiledConfig

SOAK = int(os.environ.get("FASTVICREG_SOAK", "0"))


@dataclass(frozen=True)
class Kind:
    """A kind of run, and how often it is killed."""

    kills: int
    method: str = "vicreg"
    step: Any = None
    engine: str = "native"
    processes: int = 1
    options: bool = False
    """With a weight decay that moves, clipping and stochastic depth."""
    late: bool = False
    """Only after a checkpoint: it compiles for longer than it trains."""
    soak: bool = False
    """Only in a soak: it takes long."""
    run: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "vicreg": Kind(5),
    "byol": Kind(3, "byol"),
    "moco": Kind(3, "moco"),
    "swav": Kind(3, "swav"),
    "dino": Kind(2, "dino", options=True),
    "probe": Kind(1, run={"probe": "linear"}),
    "cached": Kind(2, step=CachedConfig(micro_batches=2)),
    "ffcv": Kind(1, engine="ffcv", soak=True),
    "dali": Kind(1, engine="dali"),
    "two processes": Kind(2, processes=2),
    "simsiam": Kind(2, "simsiam", soak=True),
    "wmse": Kind(2, "wmse", soak=True),
    "four processes": Kind(2, "byol", processes=4, soak=True),
    "compiled": Kind(1, step=CompiledConfig(), soak=True),
    "compiled, late": Kind(1, step=CompiledConfig(), late=True, soak=True),
}
NEEDED = {"ffcv": ("ffcv",), "dali": ("nvidia", "nvidia.dali")}
"""By engine; a package is looked for once the one that it lies in is there."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "data"
    for number in range(24):
        path = folder / f"class{number % 3}" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number, 30, 40)))
    convert_dataset(folder, folder.parent / "data.beton", Settings(format="beton"))
    return folder


def config_of(kind: Kind, images: Path) -> TrainConfig:
    config = tiny(images if kind.engine == "native" else images.parent / "data.beton", **kind.run)
    data = replace(config.data, pipeline=kind.engine, workers=1, stall_timeout=60)
    config = replace(config, data=data, method=METHOD_CONFIGS[kind.method])
    config = with_dino_s_options(config) if kind.options else config
    return replace(config, step=kind.step) if kind.step else config


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if SOAK or not kind.soak])
def test_killed_anywhere_it_ends_as_the_run_that_was_left_alone(name: str, images: Path, tmp_path: Path) -> None:
    kind = KINDS[name]
    if kind.engine in NEEDED and not all(map(find_spec, NEEDED[kind.engine])):
        pytest.skip(f"{kind.engine} is not installed")
    config = config_of(kind, images)
    seconds = whole(config, tmp_path / "whole", kind.processes, late=kind.late)
    told, kills, rounds = [], kind.kills * (SOAK or 1), 0
    while kills > 0:
        out = tmp_path / f"killed{rounds}"
        how = {"kills": min(kills, 4), "seconds": seconds, "seed": rounds, "processes": kind.processes}
        found = killed(config, out, **how, late=kind.late)
        assert not kind.late or not found.met["before the first checkpoint"]
        assert differences(out, tmp_path / "whole") == [], found
        told.append(found)
        kills, rounds, seconds = kills - found.kills, rounds + 1, found.seconds
    met = sum((each.met for each in told), start=type(told[0].met)())
    print(json.dumps({"kind": name, "killed": sum(each.kills for each in told), "met": met}))


@pytest.mark.slow
def test_another_seed_and_an_earlier_checkpoint_are_told_apart(images: Path, tmp_path: Path) -> None:
    config = config_of(KINDS["vicreg"], images)
    whole(config, tmp_path / "run")
    whole(replace(config, run=replace(config.run, seed=1)), tmp_path / "seed")
    assert {"log", "model encoder.conv1.weight"} <= set(differences(tmp_path / "seed", tmp_path / "run"))
    whole(replace(config, run=replace(config.run, steps=random.Random(0).randrange(5, 9))), tmp_path / "earlier")
    assert {"log", "state", "model encoder.conv1.weight"} <= set(differences(tmp_path / "earlier", tmp_path / "run"))
