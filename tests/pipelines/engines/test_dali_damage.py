"""The dali engine over damaged data, and when it is left, hangs or fails: counted, told, and always ended."""

from __future__ import annotations

import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from near_native import COMPARE, assert_as_native, needs_dali, run_apart
from stored import damage, epoch_of, training, unchecked

from fastvicreg.contracts import Cursor, Fault
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.engines.dali_thread import Watched
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.stalls import StalledError

VICTIM = 6


@needs_dali
def test_one_changed_bit_is_found_where_there_is_a_manifest(beton: Path) -> None:
    source = BetonSource(beton)
    damage(beton, VICTIM, 0.9, bytes([source.stored(VICTIM)[int(0.9 * len(source.stored(VICTIM)))] ^ 1]))
    plan = training(len(source))
    assert assert_as_native(source, plan, Cursor(0, 0), batch_size=6) == {"changed": 1}
    (crops,) = epoch_of(build_engine("dali", source, plan, batch_size=len(source)), Cursor(0, 0))
    (at,) = np.flatnonzero(crops.fault_B.numpy()).tolist()
    assert (crops.slot_B[at], crops.index_B[at], crops.fault_B[at]) == (VICTIM, VICTIM + 1, Fault.CHANGED)


@pytest.mark.slow
@needs_dali
def test_bytes_that_are_no_jpeg_never_reach_dali(beton: Path) -> None:
    noise = np.random.default_rng(0).bytes(1 << 16)
    for sample, start in enumerate((b"nothing", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"")):
        damage(beton, sample, 0.0, start + noise)
    damage(beton, 7, 0.5, bytes(1 << 16))  # cut in half
    assert run_apart(COMPARE, unchecked(beton)).strip() == "{'undecodable': 5}"


@pytest.mark.slow
@needs_dali
def test_a_batch_that_dali_refuses_is_begun_again_without_the_guilty(beton: Path) -> None:
    damage(beton, 7, 0.5, bytes(1 << 16))
    # Blinded, the header check lets a JPEG cut in half through, which ends DALI's pipeline.
    script = "dali_samples.plain_size = lambda encoded: tuple(map(int, dali_samples.simplejpeg.decode_jpeg_header("
    script += "encoded)[1::-1]))\n"
    assert run_apart(script + COMPARE, unchecked(beton)).strip() == "{'undecodable': 1}"


@pytest.mark.slow
@needs_dali
def test_a_sample_that_dali_alone_refuses_is_delivered_all_the_same(beton: Path) -> None:
    script = """
    true_size = dali_samples.plain_size
    dali_samples.plain_size = lambda data: (5000, 5000) if bytes(data) == bytes(source.stored(9)) else true_size(data)
    """  # a box beyond the image: DALI refuses it, libjpeg-turbo finds nothing
    assert run_apart(textwrap.dedent(script) + COMPARE, unchecked(beton)).strip() == "{}"


@needs_dali
def test_a_failure_that_no_sample_explains_ends_the_run_with_its_reason(
    beton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvicreg.pipelines.engines import dali_graph

    source = open_source(beton)
    engine = build_engine("dali", source, training(len(source)), batch_size=4)

    original = dali_graph.Graph.take

    def fails(graph: dali_graph.Graph, stream: Any = None) -> list[torch.Tensor]:
        if len(graph._ahead[0].encoded_P) == 4:
            raise dali_graph.GraphError("out of memory")
        return original(graph, stream)

    monkeypatch.setattr(dali_graph.Graph, "take", fails)
    with pytest.raises(RuntimeError, match="no sample is at fault: out of memory; --pipeline native"):
        epoch_of(engine, Cursor(0, 0))


@needs_dali
def test_above_the_budget_the_run_stops(beton: Path) -> None:
    for sample in (2, 7, 11):
        damage(beton, sample, 0.0, b"nothing")
    source = BetonSource(unchecked(beton))
    engine = build_engine("dali", source, training(len(source)), batch_size=11, budget=FaultBudget(count=2, share=0.05))
    with pytest.raises(UserError, match=r"3 of the \d+ samples .*sample \d+"):
        epoch_of(engine, Cursor(0, 0))


@needs_dali
@pytest.mark.parametrize("leave", ["sys.exit(0)", "dali.close()", "del dali, batches", ""])
def test_the_process_ends_in_the_middle_of_an_epoch(beton: Path, leave: str) -> None:
    assert run_apart(f"batches = dali.batches(Cursor(0, 0))\nnext(batches)\nprint('one')\n{leave}", beton) == "one\n"


@pytest.mark.slow
@needs_dali
def test_a_hang_inside_dali_is_given_up_and_the_process_ends(beton: Path) -> None:
    script = """
    import time
    from fastvicreg.pipelines.engines.dali_graph import Graph
    from fastvicreg.stalls import StalledError

    dali = build_engine("dali", source, plan, batch_size=5, workers=2, stall=5.0)
    list(dali.batches(Cursor(0, 0)))
    Graph.take = lambda graph, stream: time.sleep(3600)
    try:
        list(dali.batches(Cursor(1, 0)))
    except StalledError as error:
        print(error)
    dali.close()
    """
    assert "gave nothing for 5 s" in run_apart(script, beton)


def test_what_the_thread_raises_is_raised_where_it_is_waited_for() -> None:
    def items():  # type: ignore[no-untyped-def]
        yield 1
        raise OSError(5, "the disk is gone")

    watched = Watched(items(), "test")
    assert next(watched) == 1
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(watched)
    assert watched.close()


def test_a_thread_that_gives_nothing_is_given_up() -> None:
    freed = threading.Event()

    def items():  # type: ignore[no-untyped-def]
        yield freed.wait()

    watched = Watched(items(), "test", stall=0.1)
    with pytest.raises(StalledError, match="gave nothing for"):
        next(watched)
    assert not watched.close()
    freed.set()
    assert watched.close()
