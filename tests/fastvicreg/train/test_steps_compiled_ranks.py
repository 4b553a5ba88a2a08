"""The compiled step among several processes: the collectives in its graphs are operators, taken whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from methods import METHOD_CONFIGS
from stepping import any_method, batches, double, lars
from torch import Tensor

from fastvicreg.contracts import Batch, Horizon
from fastvicreg.train.steps.compiled.step import CompiledStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater

PROCESSES = 2


def share(batch: Batch, rank: int) -> Batch:
    """This process's rows."""
    own = replace(batch, views=tuple(view[rank::PROCESSES].contiguous() for view in batch.views))
    return own if own.places_BV5 is None else replace(own, places_BV5=own.places_BV5[rank::PROCESSES])


def trained(name: str, rank: int, *, compiled: bool) -> dict[str, Tensor]:
    """State after three steps, and the losses that they told."""
    method = any_method(name)
    updater = Updater(method, lars(method))
    step = (
        CompiledStep(method, updater, world_size=PROCESSES, backend="aot_eager")
        if compiled
        else EagerStep(method, updater, world_size=PROCESSES)
    )
    schedules, told = method.schedules(Horizon(100, 10, 8)), {}
    for number, batch in enumerate(batches(3, method=method)):
        torch.manual_seed(number)
        rates = {"lr": 0.1} | {name: schedule(number) for name, schedule in schedules.items()}
        told[f"total of step {number}"] = step(share(double(batch), rank), rates).total
    return {key: value.detach().clone() for key, value in (method.state_dict() | told).items()}


def member(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    for name in METHOD_CONFIGS:
        found = [trained(name, rank, compiled=compiled) for compiled in (False, True)]
        torch.save(found, f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_method_is_compiled_whole_among_two_processes(tmp_path: Path) -> None:
    """One test for all, since the processes take longer to start than to train."""
    mp.spawn(member, args=(str(tmp_path),), nprocs=PROCESSES)  # type: ignore[attr-defined]
    for name in METHOD_CONFIGS:
        for rank in range(PROCESSES):
            eager, compiled = torch.load(tmp_path / f"{name}-{rank}.pt")
            assert eager.keys() == compiled.keys()
            for key, value in eager.items():
                assert torch.allclose(compiled[key], value, rtol=1e-9, atol=1e-12), f"{name}: {key}"
