"""The feed's work on a GPU: which stream it is put on and which waits for which, told by stand-ins for CUDA's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvicreg.contracts import Crops, Cursor
from fastvicreg.pipelines import feed as feed_module
from fastvicreg.pipelines.feed import AHEAD, AugmentedFeed, DataWait
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe

BATCHES = AHEAD + 3


class Device:
    """Keeps what is asked of it, in order: the stream that it is asked of, and what."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.current = "step"
        self.events = 0

    def stream(self, name: str) -> Any:
        return SimpleNamespace(name=name, wait_stream=lambda other: self.log.append((name, "waits for", other.name)))

    def event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        number, self.events = self.events, self.events + 1
        return SimpleNamespace(
            number=number,
            record=lambda stream: self.log.append((stream.name, "records", str(number))),
            synchronize=lambda: self.log.append(("host", "waits for", str(number))),
        )

    @contextmanager
    def using(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before


class OnHost:
    """Crops whose copy to the device is told."""

    shape = (1, 2, 16, 16, 3)

    def __init__(self, device: Device) -> None:
        self._device = device

    def to(self, device: torch.device, *, non_blocking: bool) -> OnHost:
        assert device.type == "cuda"
        assert non_blocking
        self._device.log.append((self._device.current, "copies"))
        return self


class Batches:
    def __init__(self, device: Device) -> None:
        self._device = device

    def batches(self, start: Cursor) -> Iterator[Crops]:
        for batch in range(start.batch, BATCHES):
            index_B = torch.tensor([batch])
            crops: Any = OnHost(self._device)
            self._device.log.append((self._device.current, "is waited for"))
            yield Crops((crops,), index_B, index_B, index_B, index_B, Cursor(start.epoch, batch))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    fake = SimpleNamespace(
        Stream=lambda where: device.stream("copies"),
        current_stream=lambda where: device.stream(device.current),
        stream=device.using,
        Event=device.event,
    )
    monkeypatch.setattr(feed_module.torch, "cuda", fake)
    return device


def fed_by(device: Device) -> AugmentedFeed:
    def kernel(crops: OnHost, params_BVP: Tensor, **options: Any) -> tuple[Any, ...]:
        device.log.append((device.current, "augments"))
        told = SimpleNamespace(record_stream=lambda stream: device.log.append((stream.name, "holds a view")))
        return told, told

    plan = train_plan(BATCHES, seed=0, recipe=named_recipe("small"), image_size=16)
    return AugmentedFeed(Batches(device), plan, device="cuda", kernel=kernel)  # type: ignore[arg-type]


def test_decoding_copies_and_augmentation_have_a_stream_of_their_own_and_the_step_waits_for_it(device: Device) -> None:
    next(fed_by(device).epoch(Cursor(0, 0)))
    assert device.log == [
        ("step", "records", "0"),
        ("copies", "is waited for"),  # by an engine that decodes on the device, before it writes over its last crops
        ("copies", "records", "1"),
        ("copies", "copies"),
        ("copies", "augments"),
        ("step", "waits for", "copies"),
        ("step", "holds a view"),
        ("step", "holds a view"),
    ]


def test_the_host_is_ahead_of_the_device_by_so_many_steps_and_no_more(device: Device) -> None:
    waits = []
    for fed in fed_by(device).epoch(Cursor(0, 0)):
        assert isinstance(fed.data_wait, DataWait)
        events: Any = fed.data_wait.idle
        waits.append(tuple(event.number for event in events))
    # Two events a batch, and the last, which finds that there is no more.
    assert waits == [(2 * batch, 2 * batch + 1) for batch in range(BATCHES)]
    bounds = [entry[2] for entry in device.log if entry[0] == "host"]
    assert bounds == [str(2 * batch) for batch in range(BATCHES + 1 - AHEAD)]
