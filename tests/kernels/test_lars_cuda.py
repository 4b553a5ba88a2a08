"""The CUDA LARS kernel against the reference: its source and its launches run on the CPU."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lars_problems import OPTIONS, Problem, assert_close, by_reference, problem
from simt import guarded, run_on_host
from torch import Tensor

from fastvicreg.kernels.lars import choose
from fastvicreg.kernels.lars import cuda as lars_cuda
from fastvicreg.optim import LARS

SMALL = {"CHUNK": 256, "THREADS": 64, "RECORDS": 3}
SHIPPED = {name: getattr(lars_cuda, name) for name in SMALL}


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """The implementation's own launches, run by the emulator on CPU tensors, in blocks small enough to need many."""
    seeds = itertools.count()

    def kernel(source: str, name: str, *, defines: dict[str, Any], device: object) -> Callable[..., None]:
        def launch(grid: int, block: int, *arguments: Any) -> None:
            run_on_host(source, name, grid, block, arguments, defines=defines, seed=next(seeds))

        return launch

    monkeypatch.setattr(lars_cuda, "kernel", kernel)
    monkeypatch.setattr(lars_cuda, "current_stream", lambda device: 0)
    for name, value in SMALL.items():
        monkeypatch.setattr(lars_cuda, name, value)

    def step(
        held: Problem,
        grads: list[Tensor],
        lr: float | Tensor = 0.5,
        scale: Tensor | None = None,
        inf: Tensor | None = None,
        decay: float = OPTIONS["weight_decay"],
    ) -> None:
        rate, rates = (0.0, lr) if isinstance(lr, Tensor) else (lr, None)
        momentum, eta = OPTIONS["momentum"], OPTIONS["eta"]
        lars_cuda.lars_step(held.params, grads, held.buffers, rate, rates, decay, momentum, eta, scale, inf)

    cached = (lars_cuda._kernels, lars_cuda._kept_table, choose)
    for function in cached:
        function.cache_clear()
    yield step
    for function in cached:
        function.cache_clear()


def test_ten_steps_equal_the_reference(on_host: Callable[..., None]):
    start = problem(steps=10)
    start.params[5].zero_()  # an adapted parameter of norm 0
    start.grads[2][2].zero_()
    held = start.to(guarded)
    for grads in held.grads:
        on_host(held, grads)
    assert_close(held, by_reference(start))
    assert not any(torch.equal(*pair) for pair in zip(held.params, start.params, strict=True) if pair[0].numel())


def test_both_norms_zero_leave_a_tensor_as_it_is(on_host: Callable[..., None]):
    start = problem(((8, 9), (7, 5)))
    start.params[0].zero_()
    start.grads[0][0].zero_()
    held = start.to(guarded)
    on_host(held, held.grads[0])
    assert not held.params[0].any()
    assert not held.buffers[0].any()
    assert_close(held, by_reference(start))


def test_a_gradient_of_zero_without_decay_is_not_adapted(on_host: Callable[..., None]):
    held = problem(((8, 9), (7, 5))).to(guarded)
    held.grads[0][0].zero_()
    held.buffers[0].fill_(1.0)
    before = held.params[0].clone()
    on_host(held, held.grads[0], decay=0.0)
    assert held.buffers[0].eq(torch.tensor(OPTIONS["momentum"])).all()
    torch.testing.assert_close(held.params[0], before - 0.5 * 0.9)


def test_a_step_shows_in_the_tensors_versions(on_host: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    held = problem(((8, 9), (7,))).to(guarded)
    monkeypatch.setattr(lars_cuda, "check", lambda *triple: None)
    before = [tensor._version for tensor in held.params + held.buffers]
    lars_cuda.update(held.params, held.grads[0], held.buffers, lr=0.5, **OPTIONS)
    after = [tensor._version for tensor in held.params + held.buffers]
    assert all(new > old for new, old in zip(after, before, strict=True))


def test_whole_numbers_are_handed_over_as_fractions(on_host: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    """A launch refuses an integer, whose width it would not know; ``LARS(weight_decay=0)`` is one on every device."""
    monkeypatch.setattr(lars_cuda, "check", lambda *triple: None)
    given: list[type] = []
    launches = defaultdict(lambda: lambda *arguments: given.extend(map(type, arguments)))
    monkeypatch.setattr(lars_cuda, "_kernels", lambda *_: launches)
    held = problem(((8, 9), (7,)))
    lars_cuda.update(held.params, held.grads[0], held.buffers, lr=1, weight_decay=0, momentum=0, eta=1)
    assert given.count(float) == 5
    assert given.count(int) == 4 * 2  # of the four launches: blocks and threads


@pytest.mark.parametrize("shifts", [(4, 4, 4), (0, 8, 0), (12, 0, 4)])
def test_starts_that_are_no_multiple_of_16_bytes(on_host: Callable[..., None], shifts: tuple[int, int, int]):
    start = problem(((513,), (3, 343), (1, 1), (2, 2)))
    held = start.to(guarded)
    held.params = [guarded(param, shift=shifts[0]) for param in start.params]
    held.buffers = [guarded(buffer, shift=shifts[2]) for buffer in start.buffers]
    on_host(held, [guarded(grad, shift=shifts[1]) for grad in start.grads[0]])
    assert held.params[0].data_ptr() % 16 == shifts[0]
    assert_close(held, by_reference(start))


def test_many_tensors_take_several_launches_of_the_table(on_host: Callable[..., None]):
    shapes = tuple((1 + n % 5, 1 + n % 7) if n % 3 else (1 + n % 11,) for n in range(100))
    start = problem(shapes)
    held = start.to(guarded)
    on_host(held, held.grads[0])
    assert_close(held, by_reference(start))


def test_a_gradient_at_another_address_is_found(on_host: Callable[..., None]):
    start = problem(((5, 4), (3,)), steps=3)
    held = start.to(guarded)
    for grads in start.grads:
        on_host(held, [guarded(grad) for grad in grads])
    assert_close(held, by_reference(start))


def test_channels_last_tensors_are_walked_in_the_order_of_memory(on_host: Callable[..., None]):
    start = problem(((8, 4, 3, 3), (6, 5, 1, 1)))
    last = start.to(lambda tensor: guarded(tensor.to(memory_format=torch.channels_last)))
    assert last.params[0].stride() == (36, 1, 12, 4)
    on_host(last, last.grads[0])
    assert_close(last, by_reference(start))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_gradients(on_host: Callable[..., None], dtype: torch.dtype):
    start = problem()
    start.grads = [[grad.to(dtype) for grad in start.grads[0]]]
    held = start.to(guarded)
    on_host(held, held.grads[0])
    assert_close(held, by_reference(start))


@pytest.mark.parametrize("value", [1.0, math.inf, math.nan])
def test_found_inf_leaves_every_bit_untouched(on_host: Callable[..., None], value: float):
    start = problem(steps=2)
    held = start.to(guarded)
    on_host(held, held.grads[0])
    before = held.to(torch.clone)
    on_host(held, held.grads[1], inf=torch.tensor(value))
    for own, kept in zip(held.params + held.buffers, before.params + before.buffers, strict=True):
        assert torch.equal(own, kept)
    on_host(held, held.grads[1], inf=torch.tensor(0.0))
    assert_close(held, by_reference(start))


def test_scale_and_learning_rate_are_read_from_the_device(on_host: Callable[..., None]):
    start = problem()
    start.grads = [[grad * 1024 for grad in start.grads[0]]]
    held = start.to(guarded)
    on_host(held, held.grads[0], lr=torch.tensor(0.125), scale=torch.tensor(1024.0))
    assert_close(held, by_reference(start, lr=0.125, scale=1024.0))


def test_equal_inputs_give_equal_bits_in_any_order_of_blocks(on_host: Callable[..., None]):
    runs = []
    for _ in range(2):
        held = problem().to(guarded)
        on_host(held, held.grads[0])
        runs.append(held)
    assert all(torch.equal(*pair) for pair in zip(runs[0].params, runs[1].params, strict=True))


def test_norms_of_large_and_of_many_values_lose_no_digits(on_host: Callable[..., None]):
    start = problem(((300, 400), (20, 20)))
    start.params[1] *= 1e12
    start.grads[0][0] += 3
    held = start.to(guarded)
    on_host(held, held.grads[0])
    assert_close(held, by_reference(start))


def test_the_sizes_that_a_device_gets(on_host: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    for name, value in SHIPPED.items():
        monkeypatch.setattr(lars_cuda, name, value)
    start = problem(((130, 257), (16384,), (5, 5)))
    held = start.to(guarded)
    on_host(held, held.grads[0])
    assert_close(held, by_reference(start))


def test_the_operator_is_one_that_a_compiled_graph_can_take(on_host: Callable[..., None]):
    held = problem(((5, 4), (3,)))
    arguments = (held.params, held.grads[0], held.buffers, 0.5, None, 0.01, 0.9, 0.02, None, None)
    torch.library.opcheck(lars_cuda.lars_step, arguments)


def test_gradscaler_leaves_unscaling_and_skipping_to_the_kernel(
    on_host: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lars_cuda, "obstacle", lambda device, dtype: "")
    monkeypatch.setattr(lars_cuda, "check", lambda *tensors: None)
    monkeypatch.setattr(lars_cuda, "check_scalars", lambda *scalars: None)
    start = problem(((5, 4), (3,)), steps=2)
    params = [torch.nn.Parameter(param.clone()) for param in start.params]
    optimizer = LARS(params, lr=0.5, impl="cuda", **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
    for step in (start.grads[0], [grad / 0 for grad in start.grads[1]], start.grads[1]):
        scaler.scale(torch.zeros(()))  # the scale comes to be at its first use
        for param, grad in zip(params, step, strict=True):
            param.grad = grad * scaler.get_scale()
        handed = [param.grad.clone() for param in params if param.grad is not None]
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, handed, strict=True) if p.grad is not None)
    assert scaler.get_scale() == 32.0
    found = Problem([param.detach() for param in params], [])
    found.buffers = [optimizer.state[param]["momentum_buffer"] for param in params]
    assert_close(found, by_reference(start))
