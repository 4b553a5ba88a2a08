"""Runs that are killed at random moments and go on, each in processes that start in no time, and what they leave."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from runs import log, train
from safetensors.torch import load_file
from torch import Tensor

from fastvicreg.config import TrainConfig
from fastvicreg.show.metrics import FILE
from fastvicreg.train import checkpoint as checkpoints

SECONDS = 600 if os.environ.get("FASTVICREG_SOAK") else 120
"""For a whole run, however busy the machine; one of a soak's compiles first."""
STARTING = 2.0
"""Seconds within which a run has hardly begun."""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",  # of which torch's optimizers import 2 s at their first use
        "torch.utils.tensorboard",
        "fastvicreg.train.trainer",
        "fastvicreg.pipelines.engines.native",
        "fastvicreg.kernels.resample.numba_impl",
        "fastvicreg.kernels.augment.compiled_views",
        "runs",
    ]
)


@dataclass
class Killed:
    """How often a run was killed, and what that met."""

    seconds: float
    """From a run's first step, or checkpoint, to its end: as given, or as one took that ended before it was killed."""
    kills: int = 0
    met: Counter[str] = field(default_factory=Counter)
    """By what lay in the run's folder: before the first checkpoint, between two, a draft half written."""


def _work(config: TrainConfig, out: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    # What the terminal would show is of no use, and a killed process's peers say at length that it is gone.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    train(config, out, resume=True)


def _start(config: TrainConfig, out: Path, processes: int) -> list[BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        environment = {name: str(value) for name, value in names.items()} if processes > 1 else {}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
        started.append(CONTEXT.Process(target=_work, args=(config, out, environment)))
        started[-1].start()
    return started


def whole(config: TrainConfig, out: Path, processes: int = 1, *, late: bool = False) -> float:
    """Run to the end; returns the seconds from the first step on, or if ``late`` from the first checkpoint on."""
    before = _began(out, late)
    started = _start(config, out, processes)
    _await_change(started, out, before, late)
    began = time.monotonic()
    for process in started:
        process.join(SECONDS)
        assert process.exitcode == 0, process
    return time.monotonic() - began


def _began(out: Path, late: bool) -> object:
    """Changes when a run begins or goes on, for it then writes its log anew; if ``late`` with every checkpoint."""
    if late:
        return [path.name for path in checkpoints.listed(out / "checkpoints")]
    path = out / FILE
    return path.stat().st_mtime_ns if path.exists() else 0


def _await_change(started: list[BaseProcess], out: Path, before: object, late: bool) -> None:
    deadline = time.monotonic() + SECONDS
    while _began(out, late) == before and all(process.is_alive() for process in started):
        assert time.monotonic() < deadline, "the run does not begin"
        time.sleep(0.002)


def killed(
    config: TrainConfig, out: Path, *, kills: int, seconds: float, seed: int, processes: int = 1, late: bool = False
) -> Killed:
    """Kill one of the run's processes ``kills`` times, or as often as it does not end before; then let it end.

    Most die within ``seconds`` of the first step, one in six while the run is still starting. If ``late`` all die
    within ``seconds`` of a checkpoint that they wrote: of runs that compile for longer than they train.
    """
    chance, told = random.Random(seed), Killed(seconds)
    while told.kills < kills:
        before = _began(out, late)
        started = _start(config, out, processes)
        if late or chance.random() < 5 / 6:
            _await_change(started, out, before, late)
            share = _left(out, config)
            planned, began = chance.uniform(0, seconds * share), time.monotonic()
            while (waited := time.monotonic() - began) < planned and any(one.is_alive() for one in started):
                time.sleep(0.001)
            if waited < planned:
                told.seconds = waited / share
        else:
            time.sleep(chance.uniform(0, STARTING))
        victim = chance.choice(started)
        if victim.is_alive() and victim.pid:
            os.kill(victim.pid, signal.SIGKILL)
        victim.join(SECONDS)
        for process in started:  # those that wait for the dead one end by themselves
            process.join(SECONDS + 2 * config.data.stall_timeout)  # if it died before they met
            assert process.exitcode is not None, "a process outlived the one it waits for"
        if all(process.exitcode == 0 for process in started):
            break  # it came to its end before
        told.kills += 1
        told.met[_met(out / "checkpoints")] += 1
    whole(config, out, processes)
    return told


def _left(out: Path, config: TrainConfig) -> float:
    """Share of the run's epochs that it has still to make."""
    found = checkpoints.listed(out / "checkpoints")
    with suppress(OSError):  # a newer one may take its place
        state = json.loads((found[-1] / "state.json").read_text()) if found else {"epoch": 0}
        return 1 - state["epoch"] / config.run.epochs
    return 0.5


def _met(folder: Path) -> str:
    if any(folder.glob(".*.tmp")):
        return "a checkpoint half written"
    return "between two checkpoints" if checkpoints.listed(folder) else "before the first checkpoint"


def left_by(out: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Tensor]]:
    """(log, state, tensors) at a run's end: all that an interruption must not change."""
    newest = checkpoints.listed(out / "checkpoints")[-1]
    tensors = {
        f"{file.stem} {name}": value for file in newest.glob("*.safetensors") for name, value in load_file(file).items()
    }
    return log(out), {"name": newest.name, "state": (newest / "state.json").read_text()}, tensors


def differences(found: Path, wanted: Path) -> list[str]:
    """What of ``left_by`` is not equal, bit for bit."""
    (rows, state, tensors), (other_rows, other_state, other_tensors) = left_by(found), left_by(wanted)
    told = ["log"] * (rows != other_rows) + ["state"] * (state != other_state)
    if tensors.keys() != other_tensors.keys():
        return [*told, "tensors' names"]
    return told + [name for name, value in tensors.items() if not torch.equal(value, other_tensors[name])]
