"""What the kernels' host sides ask the compiler for is what they list for a wheel: no more, and no less."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from fastvicreg.contracts import photometric_identity
from fastvicreg.kernels.augment import DTYPES
from fastvicreg.kernels.augment import cuda as augment_cuda
from fastvicreg.kernels.lars import cuda as lars_cuda
from fastvicreg.kernels.loss import choose, vicreg_loss
from fastvicreg.kernels.loss import cuda as loss_cuda


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Choices and launchers of before, and these, are forgotten."""
    cached = (choose, lars_cuda._kernels, lars_cuda._kept_table)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def asked_of(host_side: ModuleType, monkeypatch: pytest.MonkeyPatch, run: Callable[[], None]) -> set[str]:
    """Sources and macros that ``run`` asks for, with launches that do nothing."""
    asked: set[str] = set()

    def kernel(source: str, name: str, *, defines: dict[str, Any], device: object) -> Callable[..., None]:
        asked.add(repr((source, sorted(defines.items()))))
        return lambda *arguments, **options: None

    monkeypatch.setattr(host_side, "kernel", kernel)
    run()
    return asked


def listed(host_side: ModuleType) -> set[str]:
    return {repr((source, sorted(defines.items()))) for source, defines in host_side.variants()}


def test_the_loss_asks_for_what_it_lists(monkeypatch: pytest.MonkeyPatch):
    def run() -> None:
        for limit in (227 << 10, 0):
            monkeypatch.setattr(loss_cuda, "shared_limit", lambda device, limit=limit: limit)
            for dtype in loss_cuda.OPERANDS:
                for n, d in ((5, 7), (5, 32), (40, 7), (40, 16)):
                    za_ND, zb_ND = (torch.ones(n, d, dtype=dtype, requires_grad=True) for _ in range(2))
                    vicreg_loss(za_ND, zb_ND, impl="cuda").total.backward()

    monkeypatch.setattr(loss_cuda, "obstacle", lambda device, dtype: "")
    assert asked_of(loss_cuda, monkeypatch, run) == listed(loss_cuda)


def test_lars_asks_for_what_it_lists(monkeypatch: pytest.MonkeyPatch):
    def run() -> None:
        for dtype in lars_cuda.GRAD_TYPES:
            tensors = [torch.ones(4, 4)], [torch.ones(4, 4, dtype=dtype)], [torch.zeros(4, 4)]
            lars_cuda.lars_step(*tensors, 0.1, None, 0.0, 0.9, 0.001, None, None)

    monkeypatch.setattr(lars_cuda, "current_stream", lambda device: 0)
    assert asked_of(lars_cuda, monkeypatch, run) == listed(lars_cuda)


def test_augmentation_asks_for_what_it_lists(monkeypatch: pytest.MonkeyPatch):
    def run() -> None:
        crops_BVHWC = torch.zeros(2, 2, 8, 8, 3, dtype=torch.uint8)
        for dtype in DTYPES:
            options = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "dtype": dtype}
            augment_cuda.augment(crops_BVHWC, photometric_identity(2, 2), **options)

    monkeypatch.setattr(augment_cuda, "shared_limit", lambda device: 227 << 10)
    assert asked_of(augment_cuda, monkeypatch, run) == listed(augment_cuda)
