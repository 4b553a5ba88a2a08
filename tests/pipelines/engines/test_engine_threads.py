"""An engine's threads use the run's GPU: one that began on device 0 would hold half a gigabyte there for every rank."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from near_native import needs_dali
from stored import training

from fastvicreg.contracts import Cursor
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.engines.batching import Batching
from fastvicreg.pipelines.engines.dali import DALIBackend
from fastvicreg.pipelines.engines.options import EngineOptions
from fastvicreg.pipelines.engines.workload import Workload

needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed: make ffcv")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, Any]]:
    """Every device that a thread made its own: whether it was the main one, and which device."""
    calls: list[tuple[bool, Any]] = []

    def set_device(device: Any) -> None:
        calls.append((threading.current_thread() is threading.main_thread(), device))

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    return calls


@needs_dali
def test_dali_s_thread(beton: Path, chosen: list[tuple[bool, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvicreg.pipelines.engines import dali_graph

    def opened(shape: Any) -> None:
        assert chosen == [(False, 1)]  # before anything else is done there
        raise dali_graph.GraphError("no driver here")

    monkeypatch.setattr("fastvicreg.pipelines.engines.dali._decoding_device", lambda decoder, device: 1)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(dali_graph, "Graph", opened)
    source = open_source(beton)
    dali = build_engine("dali", source, training(len(source)), batch_size=4)
    with pytest.raises(dali_graph.GraphError, match="no driver here"):
        next(iter(dali.batches(Cursor(0, 0))))
    dali.close()
    assert len(chosen) == 1


@needs_dali
@pytest.mark.parametrize("taken", [1, 2, 3])
def test_dali_s_memory_serves_another_batch_once_its_reader_has_read_it(
    beton: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an epoch that is left early too: what reads the last batch is on a stream that dali's does not know."""
    waits: list[Any] = []
    stream = SimpleNamespace(wait_stream=waits.append)
    monkeypatch.setattr("fastvicreg.pipelines.engines.dali._decoding_device", lambda decoder, device: 1)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the reader's on {device}")
    monkeypatch.setattr(DALIBackend, "_deliveries", lambda *_: (delivery for delivery in ["a", "b", "c"]))
    source = open_source(beton)
    work = Workload(source, training(len(source)), Batching(len(source), 4, True), EngineOptions(device="cuda"))
    deliveries = DALIBackend(work).deliver(work.epoch(Cursor(0, 0)))
    for _ in range(taken):
        next(deliveries)
    deliveries.close()
    assert waits == ["the reader's on 1"] * taken


@needs_ffcv
@pytest.mark.parametrize("finds_a_gpu", [True, False])
def test_ffcv_s_threads(chosen: list[tuple[bool, Any]], finds_a_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffcv.loader.epoch_iterator import EpochIterator

    from fastvicreg.pipelines.engines.ffcv_loader import Worker

    monkeypatch.setattr(EpochIterator, "run", lambda self: None)
    worker = Worker.__new__(Worker)
    worker.closed, worker.terminate_event = True, threading.Event()  # what its end asks for
    if finds_a_gpu:
        worker.current_stream = SimpleNamespace(device="cuda:1")  # type: ignore[attr-defined]
    thread = threading.Thread(target=lambda: Worker.run(worker))
    thread.start()
    thread.join()
    assert chosen == [(False, "cuda:1")] * finds_a_gpu
