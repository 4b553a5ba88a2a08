"""The device that computes, how exactly it multiplies, and how what the host has made gets there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import tiny

from fastvicreg.train.assemble import assemble
from fastvicreg.train.device import (
    SLOW_FP16,
    evaluation_device,
    exact_products,
    resolve_precision,
    search_convolutions,
    sent,
)

MATMUL: Any = torch.backends.cuda.matmul
CUDNN: Any = torch.backends.cudnn


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = MATMUL.allow_tf32, CUDNN.allow_tf32, CUDNN.benchmark
    yield
    MATMUL.allow_tf32, CUDNN.allow_tf32, CUDNN.benchmark = before


@pytest.mark.parametrize("precision", ["off", "tf32", "bf16", "fp16"])
def test_products_in_fp32_are_rounded_only_where_it_was_asked_for(precision: str) -> None:
    """Under autocast the loss is in fp32: rounded to TF32 it would be off by more than its gates, and nobody told."""
    exact_products(precision)
    assert (MATMUL.allow_tf32, CUDNN.allow_tf32) == ((precision == "tf32"),) * 2


def test_an_evaluation_rounds_no_products() -> None:
    CUDNN.allow_tf32 = True  # as torch begins
    assert evaluation_device("cpu") == "cpu"
    assert (MATMUL.allow_tf32, CUDNN.allow_tf32) == (False, False)


def test_mixed_precision_is_a_gpu_s_default() -> None:
    assert [resolve_precision("auto", device) for device in ("cuda:1", "cpu")] == ["bf16", "off"]
    assert resolve_precision("tf32", "cuda") == "tf32"


def test_convolutions_are_searched_for_on_a_gpu_alone() -> None:
    found = []
    for device in ("cpu", "cuda:1"):
        search_convolutions(device)
        found.append(CUDNN.benchmark)
    assert found == [False, True]


@pytest.mark.parametrize(("precision", "told"), [("fp16", 1), ("bf16", 0), ("auto", 0)])
def test_fp16_on_a_cpu_is_told_to_be_slow(uninterrupted: tuple[Path, Path], precision: str, told: int) -> None:
    config = tiny(uninterrupted[0])
    run = assemble(replace(config, run=replace(config.run, precision=precision)))  # type: ignore[arg-type]
    run.engine.close()
    assert run.data.notes.count(SLOW_FP16) == told


def test_on_the_host_nothing_is_copied() -> None:
    label_B = torch.arange(3)
    assert sent(label_B, torch.device("cpu")).data_ptr() == label_B.data_ptr()


@pytest.mark.gpu
def test_nobody_waits_for_what_is_sent() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        label_B = sent(torch.arange(3), torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert label_B.tolist() == [0, 1, 2]
    assert sent(label_B, label_B.device) is label_B
