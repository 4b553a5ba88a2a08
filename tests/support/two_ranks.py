"""What two processes over gloo train, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

Trained = Callable[[int, int], dict[str, Tensor]]
"""(rank, processes) to named tensors; a function of a module."""


def _member(rank: int, folder: str, trained: Trained) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(trained(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained_by_two(trained: Trained, folder: Path) -> list[dict[str, Tensor]]:
    """What ``trained`` gives in each of two processes, by rank."""
    mp.spawn(_member, args=(str(folder), trained), nprocs=2)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
