"""The LARS kernels: the reference against its rule worked by hand, the others against the reference bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastvicreg.contracts import UserError
from fastvicreg.kernels.lars import foreach, lars_update

IMPLEMENTATIONS = ("reference", "foreach")
SHAPES = ((16, 3, 7, 7), (16,), (33, 65), (1, 130), (), (5, 4), (257,), (0, 3))


def tensors(seed: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_two_steps_worked_by_hand(impl: str):
    matrix, bias = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([1.0, -2.0]).double()
    grads = [torch.tensor([[0.0, 1.0]]).double(), torch.tensor([0.5, 0.25]).double()]
    buffers = [torch.zeros_like(matrix), torch.zeros_like(bias)]
    options = {"lr": 2.0, "weight_decay": 0.5, "momentum": 0.9, "eta": 0.01, "impl": impl}

    lars_update([matrix, bias], grads, buffers, **options)
    q = 0.01 * 5 / math.hypot(1.5, 3.0)  # ||(3, 4)|| = 5; u = (0 + 1.5, 1 + 2)
    first = [1.5 * q, 3.0 * q]
    after = [3 - 2 * first[0], 4 - 2 * first[1]]
    assert buffers[0].flatten().tolist() == pytest.approx(first, rel=1e-14)
    assert matrix.flatten().tolist() == pytest.approx(after, rel=1e-14)
    assert bias.tolist() == [0.0, -2.5]

    lars_update([matrix, bias], grads, buffers, **options)
    u = [0.5 * after[0], 1 + 0.5 * after[1]]
    q = 0.01 * math.hypot(*after) / math.hypot(*u)
    second = [0.9 * m + q * x for m, x in zip(first, u, strict=True)]
    assert buffers[0].flatten().tolist() == pytest.approx(second, rel=1e-14)
    assert matrix.flatten().tolist() == pytest.approx(
        [p - 2 * m for p, m in zip(after, second, strict=True)], rel=1e-14
    )
    assert bias.tolist() == pytest.approx([-2 * 0.95, -2.5 - 2 * 0.475], rel=1e-14)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_zero_norm_leaves_the_gradient_unscaled(impl: str):
    zero, still = torch.zeros(2, 2), torch.full((2, 2), 3.0)
    buffers = [torch.zeros(2, 2), torch.zeros(2, 2)]
    grads = [torch.full((2, 2), 0.5), torch.zeros(2, 2)]
    lars_update([zero, still], grads, buffers, lr=1.0, weight_decay=0.0, momentum=0.9, eta=0.001, impl=impl)
    assert torch.equal(zero, torch.full((2, 2), -0.5))
    assert torch.equal(still, torch.full((2, 2), 3.0))


@pytest.mark.parametrize("chunk", [1, 300, 1 << 22])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-6, 0.1])
def test_foreach_is_the_reference_bit_for_bit(weight_decay: float, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(foreach.CHUNK_ELEMENTS, "cpu", chunk)
    runs = {impl: (tensors(0), [torch.zeros(shape) for shape in SHAPES]) for impl in IMPLEMENTATIONS}
    for params, _ in runs.values():
        params[5].zero_()  # an adapted parameter of norm 0
        params[6].zero_()
    for step in range(20):
        grads = tensors(100 + step)
        grads[2] *= step != 7  # a step whose gradient is 0
        if step < 3:
            grads[5].zero_()  # both norms 0
        before = [grad.clone() for grad in grads]
        for impl, (params, buffers) in runs.items():
            options = {"lr": 0.3 * step, "weight_decay": weight_decay, "momentum": 0.9, "eta": 0.001, "impl": impl}
            lars_update(params, grads, buffers, **options)
        assert all(torch.equal(*pair) for pair in zip(grads, before, strict=True))
        for reference, found in zip(runs["reference"], runs["foreach"], strict=True):
            assert all(torch.equal(*pair) for pair in zip(reference, found, strict=True)), step
    assert not any(torch.equal(p, q) for p, q in zip(runs["foreach"][0], tensors(0), strict=True) if p.numel())


def test_parameters_of_mixed_precision_and_layout_agree():
    runs = []
    for impl in IMPLEMENTATIONS:
        params = [tensor.to(dtype) for tensor in tensors(1) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
        params.append(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(9)))
        params[-1] = params[-1].to(memory_format=torch.channels_last)
        grads = [0.1 * param.contiguous().cos() for param in params]
        buffers = [torch.zeros_like(param) for param in params]
        lars_update(params, grads, buffers, lr=0.5, weight_decay=0.01, momentum=0.9, eta=0.1, impl=impl)
        runs.append(params)
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


class Operations(TorchDispatchMode):
    """Names of the operations run, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_value_is_read_back_from_the_device(impl: str):
    params, grads, buffers = tensors(0), tensors(1), [torch.zeros(shape) for shape in SHAPES]
    with Operations() as operations:
        lars_update(params, grads, buffers, lr=0.1, weight_decay=0.1, momentum=0.9, eta=0.001, impl=impl)
    assert len(operations.names) > 5
    assert not {"_local_scalar_dense", "item", "is_nonzero", "equal", "_to_copy"} & set(operations.names)


def test_foreach_takes_a_fixed_number_of_calls():
    def calls(count: int) -> int:
        shapes = ((4, 4), (4,)) * count
        with Operations() as operations:
            lars_update(
                *(tensors(seed, shapes) for seed in range(3)), lr=0.1, weight_decay=0.1, momentum=0.9, eta=0.001
            )
        return len([name for name in operations.names if name != "randn"])

    assert calls(2) == calls(50)


def test_uneven_lists_and_unknown_names_are_refused():
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "eta": 0.001}
    with pytest.raises(ValueError, match="got 8, 7 and 8"):
        lars_update(tensors(0), tensors(1)[:7], tensors(2), **options)
    with pytest.raises(UserError, match="'for_each'; did you mean 'foreach'"):
        lars_update(tensors(0), tensors(1), tensors(2), impl="for_each", **options)
