"""Processes meet each other, and not the dead that wrote into the same store before them."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from fastvicreg.train.meeting import meeting_place

WAIT = timedelta(seconds=10)


def meet(store: dist.Store, world_size: int) -> list[dist.Store]:
    """By rank; the last comes first."""
    with ThreadPoolExecutor(world_size) as threads:
        ranks = [
            threads.submit(meeting_place, store, rank, world_size, timeout=WAIT) for rank in reversed(range(world_size))
        ]
        return [rank.result() for rank in reversed(ranks)]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_all_come_to_one_place(world_size: int) -> None:
    for rank, place in enumerate(places := meet(dist.HashStore(), world_size)):
        place.set(f"address/{rank}", str(rank))
        assert places[0].get(f"address/{rank}") == str(rank).encode()


def test_those_started_again_do_not_see_what_the_dead_wrote() -> None:
    store = dist.HashStore()
    for place in meet(store, 3):
        place.set("address", "of the dead")
    for place in meet(store, 3):
        assert not place.check(["address"])


def test_one_that_died_while_they_met_is_not_waited_for_and_not_taken_for_its_successor() -> None:
    store = dist.HashStore()
    with pytest.raises(dist.DistStoreError):
        meeting_place(store, 1, 2, timeout=timedelta(seconds=0.1))  # its first process never came
    with pytest.raises(TimeoutError, match="rank 1 did not come"):
        meeting_place(store, 0, 2, timeout=timedelta(seconds=0.1))  # it answers the dead one, which reads nothing
    first, second = meet(store, 2)
    first.set("address", "here")
    assert second.get("address") == b"here"
