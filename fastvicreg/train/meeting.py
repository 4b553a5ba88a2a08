"""How the processes of a run find each other, though the store they meet at still holds what dead ones wrote.

torchrun keeps one store for as long as it lives. Processes that it starts again after one has died would read there
the addresses of the dead and connect to nobody (github.com/pytorch/pytorch/issues/135712). Its count of restarts does
not part them: each machine counts its own. So every process says a name of its own, the first answers it with the
name of this meeting, and all that follows is kept under that name.
"""

# torch.distributed documents its stores and does not list them as exported.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

POLL = 0.01
"""Seconds between two looks of the first process for those that have come."""


def meeting_place(store: dist.Store, rank: int, world_size: int, *, timeout: timedelta) -> dist.Store:
    """A part of ``store`` that only these ``world_size`` living processes know, once all of them are there.

    ``TimeoutError`` or torch's ``DistStoreError`` where one does not come within ``timeout``.
    """
    store = dist.PrefixStore("fastvicreg", store)
    if rank == 0:
        name = uuid4().hex
        _await_others(store, name, world_size, timeout)
    else:
        own = uuid4().hex
        store.set(f"here/{rank}", own)
        store.wait([f"answer/{own}"], timeout)
        name = store.get(f"answer/{own}").decode()
        store.set(f"{name}/met/{rank}", "")
    return dist.PrefixStore(name, store)


def _await_others(store: dist.Store, name: str, world_size: int, timeout: timedelta) -> None:
    """Answer whoever says to be there, dead ones' old words too, until each rank has read an answer of this meeting."""
    deadline = time.monotonic() + timeout.total_seconds()
    missing, answered = set(range(1, world_size)), set[bytes]()
    while missing:
        for rank in sorted(missing):
            if store.check([f"{name}/met/{rank}"]):
                missing.remove(rank)
            elif store.check([f"here/{rank}"]) and (own := store.get(f"here/{rank}")) not in answered:
                store.set(f"answer/{own.decode()}", name)
                answered.add(own)
        if not missing:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {min(missing)} did not come within {timeout.total_seconds():.0f} s")
        time.sleep(POLL)
