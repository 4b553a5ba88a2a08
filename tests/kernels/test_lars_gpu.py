"""The CUDA LARS kernel through its real launcher, on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lars_problems import OPTIONS, SHAPES, Problem, assert_close, by_reference, problem
from torch import Tensor

from fastvicreg.kernels.lars import lars_update
from fastvicreg.optim import LARS

pytestmark = pytest.mark.gpu


def on_device(tensor: Tensor) -> Tensor:
    return tensor.to("cuda")


def step(held: Problem, grads: list[Tensor], **options: Any) -> None:
    lars_update(held.params, grads, held.buffers, impl="cuda", **{"lr": 0.5, **OPTIONS, **options})


@pytest.mark.parametrize("shapes", [SHAPES, ((1000, 1003), (16385,), (2048, 64, 3, 3)), ((3, 2), (5,)) * 150])
def test_ten_steps_equal_the_reference(shapes: tuple[tuple[int, ...], ...]):
    start = problem(shapes, steps=10)
    held = start.to(on_device)
    for grads in held.grads:
        step(held, grads)
    assert_close(held, by_reference(start))


@pytest.mark.parametrize("shifts", [(1, 1, 1), (0, 2, 0), (3, 0, 1)])
def test_starts_that_are_no_multiple_of_16_bytes(shifts: tuple[int, int, int]):
    def shifted(tensors: list[Tensor], by: int) -> list[Tensor]:
        room = [torch.empty(tensor.numel() + by, device="cuda")[by:].view(tensor.shape) for tensor in tensors]
        return [empty.copy_(tensor) for empty, tensor in zip(room, tensors, strict=True)]

    start = problem(((513,), (3, 343), (300, 301)))
    held = Problem(shifted(start.params, shifts[0]), [])
    held.buffers = shifted(start.buffers, shifts[1])
    step(held, shifted(start.grads[0], shifts[2]))
    assert_close(held, by_reference(start))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_gradients(dtype: torch.dtype):
    start = problem()
    start.grads = [[grad.to(dtype) for grad in start.grads[0]]]
    held = start.to(on_device)
    step(held, held.grads[0])
    assert_close(held, by_reference(start))


def test_found_inf_leaves_every_bit_untouched():
    held = problem().to(on_device)
    before = held.to(torch.clone)
    step(held, held.grads[0], found_inf=torch.ones((), device="cuda"))
    assert all(torch.equal(*pair) for pair in zip(held.params, before.params, strict=True))
    assert not any(buffer.any() for buffer in held.buffers)


def test_a_captured_step_replays_with_other_gradients_rates_and_scales():
    start = problem(steps=4)
    held = start.to(on_device)
    lr, scale, inf = (torch.tensor(value, device="cuda") for value in (0.5, 1.0, 0.0))
    options = {"lr": lr, "grad_scale": scale, "found_inf": inf}
    static = [grad.clone() for grad in held.grads[0]]
    step(held, static, **options)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(held, static, **options)
    for grads, factor in zip(held.grads[1:], (1.0, 64.0, 2.0), strict=True):
        scale.fill_(factor)
        for own, grad in zip(static, grads, strict=True):
            own.copy_(grad * factor)
        graph.replay()
    inf.fill_(1.0)
    graph.replay()
    assert_close(held, by_reference(start))
    lr.zero_()
    inf.zero_()
    frozen = held.to(torch.clone)
    graph.replay()
    assert all(torch.equal(*pair) for pair in zip(held.params, frozen.params, strict=True))


def test_an_eager_step_after_a_replay_takes_its_own_gradients():
    start = problem(((5, 4), (3,)), steps=3)
    held = start.to(on_device)
    static = [grad.clone() for grad in held.grads[1]]
    step(held, held.grads[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(held, static)
    graph.replay()
    step(held, held.grads[2])
    assert_close(held, by_reference(start))


def test_gradscaler_hands_unscaling_over():
    start = problem(((5, 4), (3,)), steps=2)
    params = [torch.nn.Parameter(param.cuda()) for param in start.params]
    optimizer = LARS(params, lr=0.5, **OPTIONS)
    assert optimizer._step_supports_amp_scaling  # "auto" chose the kernel
    scaler = torch.amp.GradScaler("cuda", init_scale=64.0)
    for grads in (start.grads[0], [grad / 0 for grad in start.grads[1]], start.grads[1]):
        scaler.scale(torch.zeros((), device="cuda"))
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.cuda() * scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 32.0
    found = Problem([param.detach() for param in params], [])
    found.buffers = [optimizer.state[param]["momentum_buffer"] for param in params]
    assert_close(found, by_reference(start))
