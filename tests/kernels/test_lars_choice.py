"""Which LARS implementation runs, and what each refuses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from lars_problems import OPTIONS, assert_close, by_reference, problem
from torch import Tensor

from fastvicreg.contracts import UserError
from fastvicreg.kernels.lars import apex, choose, lars_update
from fastvicreg.kernels.lars import cuda as lars_cuda
from fastvicreg.optim import LARS


@pytest.fixture(autouse=True)
def chosen_anew() -> Iterator[None]:
    choose.cache_clear()
    yield
    choose.cache_clear()


def test_what_the_kernel_cannot_walk_is_named():
    weight = torch.ones(4, 6)
    with pytest.raises(ValueError, match=r"on one CUDA device, got parameter \(4, 6\) .* on cpu.*impl='foreach'"):
        lars_cuda.check(weight, weight, weight)
    with pytest.raises(ValueError, match=r"must be fp32 CUDA scalars, got .* on cpu"):
        lars_cuda.check_scalars(torch.tensor(1.0))
    lars_cuda.check_scalars(0.1, None)


@pytest.mark.parametrize(
    ("grad", "alike"),
    [
        (torch.ones(4, 6), True),
        (torch.ones(6, 4).T, False),
        (torch.ones(4, 12)[:, ::2], False),
        (torch.ones(4, 7)[:, :6], False),
        (torch.ones(6).expand(4, 6), False),
        (torch.ones(4, 6).to_sparse(), False),
    ],
)
def test_only_tensors_alike_in_memory_are_walked_together(grad: Tensor, alike: bool):
    weight = torch.ones(4, 6)
    assert lars_cuda.walk_alike((weight, grad, weight)) == alike
    assert lars_cuda.walk_alike((grad, grad, grad)) == (not grad.is_sparse and grad.stride() in ((6, 1), (1, 4)))


def test_an_axis_of_one_element_may_have_any_stride():
    weight = torch.ones(4, 6, 1, 1)
    assert lars_cuda.walk_alike((weight, weight.to(memory_format=torch.channels_last), weight))


def test_cuda_by_name_never_falls_back():
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "eta": 0.001}
    with pytest.raises(UserError, match="'cuda' cannot run here: it updates parameters on CUDA devices, not on cpu"):
        lars_update([torch.ones(2)], [torch.ones(2)], [torch.zeros(2)], impl="cuda", **options)
    with pytest.raises(UserError, match="'cuda' cannot run here"):
        LARS([torch.nn.Parameter(torch.ones(2))], lr=0.1, impl="cuda")
    with pytest.raises(UserError, match=r"fp32 parameters, not torch.float64; choose auto or foreach"):
        choose("cuda", "cuda", torch.float64)


def test_auto_takes_the_kernel_where_it_can_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lars_cuda, "cuda_obstacle", lambda: "")
    assert choose("auto", "cuda", torch.float32).name == "cuda"
    assert choose("auto", "cuda", torch.bfloat16).name == "foreach"
    assert choose("auto", "cpu", torch.float32).name == choose("auto", "mixed", torch.float32).name == "foreach"
    choose.cache_clear()
    monkeypatch.setattr(lars_cuda, "cuda_obstacle", lambda: "cuda-core is not installed")
    assert choose("auto", "cuda", torch.float32).name == "foreach"


def test_scalars_on_the_device_are_read_by_some_and_refused_by_the_others():
    runs = []
    for lr in (0.25, torch.tensor(0.25)):
        weight, buffer = torch.full((2, 2), 3.0), torch.zeros(2, 2)
        lars_update([weight], [torch.ones(2, 2)], [buffer], lr=lr, impl="foreach", **OPTIONS)
        runs.append(weight)
    assert torch.equal(*runs)
    with pytest.raises(ValueError, match="read tensors"):
        lars_update([weight], [weight], [buffer], lr=0.1, found_inf=torch.zeros(()), impl="reference", **OPTIONS)
    before = weight.clone()
    for found_inf in (1.0, 0.0):
        scalars = {"grad_scale": torch.tensor(4.0), "found_inf": torch.tensor(found_inf)}
        lars_update(
            [weight], [torch.ones(2, 2) * 4], [torch.zeros(2, 2)], lr=0.25, impl="foreach", **scalars, **OPTIONS
        )
        assert torch.equal(weight, before) == bool(found_inf)
    again = torch.full((2, 2), 3.0)
    lars_update([again], [torch.ones(2, 2)], [torch.zeros(2, 2)], lr=0.25, impl="foreach", **OPTIONS)
    lars_update([again], [torch.ones(2, 2)], [torch.zeros(2, 2)], lr=0.25, impl="foreach", **OPTIONS)
    assert torch.equal(weight, again)


class AmpC(ModuleType):
    """apex's two functions written out in torch, argument for argument as its C++ declares them."""

    def multi_tensor_l2norm(
        self, chunk: int, noop: Tensor, lists: list[list[Tensor]], per_tensor: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        (tensors,) = lists
        norms = torch.stack([tensor.norm() for tensor in tensors])
        return norms.norm(), norms if per_tensor else torch.empty(0)

    def multi_tensor_sgd(
        self, chunk: int, noop: Tensor, lists: list[list[Tensor]], decay: float, momentum: float, dampening: float,
        lr: float, nesterov: bool, first_run: bool, decay_after: bool, scale: float,
    ) -> None:  # fmt: skip
        assert noop.dtype == torch.int32
        assert not nesterov
        assert not decay_after
        for grad, param, buffer in zip(*lists, strict=True):
            own = grad * scale + decay * param
            buffer.copy_(own if first_run else momentum * buffer + (1 - dampening) * own)
            param.sub_(lr * buffer)


def test_apex_is_called_as_it_is_declared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "amp_C", AmpC("amp_C"))
    start = problem(steps=3)
    start.params[5].zero_()
    held = start.to(torch.clone)
    for grads in held.grads:
        before = [grad.clone() for grad in grads]
        apex.update(held.params, grads, held.buffers, lr=0.5, **OPTIONS)
        assert all(torch.equal(*pair) for pair in zip(grads, before, strict=True))
    assert_close(held, by_reference(start))
    assert apex.obstacle("cuda", torch.float32) == ""
    assert "not torch.float32 on cpu" in apex.obstacle("cpu", torch.float32)


def test_apex_that_is_not_built_is_told_from_the_one_on_pypi(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "amp_C", None)
    with pytest.raises(UserError, match=r"'apex' cannot run here: NVIDIA's apex .* apex on PyPI is another program"):
        choose("apex", "cuda", torch.float32)
