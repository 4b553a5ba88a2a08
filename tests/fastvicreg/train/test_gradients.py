"""``--gradients bf16``: the processes send each other gradients of 8 bits, whatever the step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from methods import batch_of
from stepping import Small
from torch import Tensor

from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg
from fastvicreg.train.steps.cached.step import CachedStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater

PROCESSES = 2
STEPS = {"eager": (EagerStep, {}), "cached": (CachedStep, {"micro_batches": 2})}


def gradients(kind: str, *, in_bf16: bool, rank: int) -> dict[str, Tensor]:
    """Of one step on this process's half of a batch."""
    torch.manual_seed(0)
    method = VICReg(Small(norm=False), VICRegConfig(expander=(16,)), impl="reference")  # pyright: ignore[reportArgumentType]
    updater = Updater(method, torch.optim.SGD(method.parameters(), lr=0.0))
    make, settings = STEPS[kind]
    step = make(method, updater, world_size=PROCESSES, **settings)
    if in_bf16:
        step.average_in_bf16()
    batch = batch_of(16)
    step(replace(batch, views=tuple(view[rank::PROCESSES].contiguous() for view in batch.views)), {"lr": 0.0})
    return {name: param.grad.clone() for name, param in method.named_parameters() if param.grad is not None}


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.save(
        {kind: [gradients(kind, in_bf16=flag, rank=rank) for flag in (False, True)] for kind in STEPS},
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[dict[str, Tensor]]]]:
    """By rank and step: gradients sent as they are, and as bf16."""
    folder = tmp_path_factory.mktemp("gradients")
    mp.spawn(work, args=(str(folder),), nprocs=PROCESSES)  # type: ignore[attr-defined]
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", STEPS)
def test_gradients_are_those_of_fp32_rounded_to_bf16_and_the_same_in_each_process(
    found: list[dict[str, list[dict[str, Tensor]]]], kind: str
) -> None:
    exact, rounded = found[0][kind]
    assert exact
    for name, grad in rounded.items():
        assert grad.dtype == torch.float32
        assert torch.equal(grad, grad.bfloat16().float()), name
        largest = float(exact[name].abs().max())
        torch.testing.assert_close(grad, exact[name], rtol=2**-6, atol=2**-7 * largest)
        assert torch.equal(grad, found[1][kind][1][name]), name
    assert any(not torch.equal(exact[name], grad) for name, grad in rounded.items())
