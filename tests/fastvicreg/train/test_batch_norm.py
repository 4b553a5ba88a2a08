"""Batch norm over several processes on the host: torch's own where there is one process, or one batch of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from fastvicreg.train.batch_norm import HostSyncBatchNorm, synchronise


def batch(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (3 + 2 * torch.randn(8, 5, 4, 4, generator=generator)).to(dtype)


def normalised(norm: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, gradient of a sum that weighs them unevenly)."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def share(rank: int, folder: str, dtype: torch.dtype) -> None:
    """One of two processes: half of the batch; writes what it found."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = HostSyncBatchNorm(5)
    half = batch(dtype)[4 * rank : 4 * rank + 4].clone().requires_grad_()
    y = norm(half)
    weight = torch.linspace(-1, 1, 2 * y.numel()).view(8, 5, 4, 4)[4 * rank : 4 * rank + 4]
    (y * weight).sum().backward()
    torch.save((y.detach(), half.grad, norm.running_mean, norm.running_var), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_processes_normalise_as_one(tmp_path: Path, dtype: torch.dtype) -> None:
    mp.spawn(share, args=(str(tmp_path), dtype), nprocs=2)  # type: ignore[attr-defined]
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    norm = nn.BatchNorm2d(5)
    y, gradient = normalised(norm, batch(dtype))
    near = 1e-5 if dtype is torch.float32 else 2e-2
    assert halves[0][0].dtype == dtype
    torch.testing.assert_close(torch.cat([half[0] for half in halves]), y, rtol=near, atol=near)
    torch.testing.assert_close(torch.cat([half[1] for half in halves]), gradient, rtol=near, atol=near)
    for half in halves:
        torch.testing.assert_close(half[2], norm.running_mean)
        torch.testing.assert_close(half[3], norm.running_var)


def test_names_and_weights_stay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4)))
    nn.init.uniform_(module.get_parameter("1.weight"))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    synchronise(module, "cpu")
    assert isinstance(module[1], HostSyncBatchNorm)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
