"""A probe in two processes that meet over gloo, each with half of a batch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from fastvicreg.contracts import Terms
from fastvicreg.train.online_probe import OnlineProbe

STEPS, ROWS, FEATURES, CLASSES = 3, 8, 5, 3


def learnt(rank: int = 0, processes: int = 1) -> Tensor:
    """The weights after a few steps on this process's share, and the figures of the last, behind one another."""
    generator = torch.Generator().manual_seed(3)
    probe, encoder = OnlineProbe(FEATURES, CLASSES, processes=processes), nn.Identity()
    probe.listen(encoder)
    share = ROWS // processes
    own = slice(rank * share, (rank + 1) * share)
    terms = Terms(torch.zeros(()), {})
    for _ in range(STEPS):
        features = torch.randn(ROWS, FEATURES, generator=generator)
        label_B = torch.randint(0, CLASSES, (ROWS,), generator=generator)
        encoder(features[own])
        terms = probe.learn(Terms(torch.zeros(()), {}), label_B[own], 0.5)
    return torch.cat([probe.weight_CF.flatten(), *(part.float()[None] for part in terms.parts.values())])


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(learnt(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def two_processes(folder: Path) -> list[Tensor]:
    """What each of two processes has learnt."""
    mp.spawn(_process, args=(str(folder),), nprocs=2)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
