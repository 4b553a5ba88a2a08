"""The norm's implementations on a GPU: the definition's values, the same bits again, and beyond 32-bit indices."""

from __future__ import annotations

import pytest
import torch
from norm_problems import Case, Problem, disagreements, outcome, problem, truth
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.kernels.norm import Options, batch_norm_act, choose

pytestmark = pytest.mark.gpu

NEAR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
CASES = (
    Case((6, 256, 7, 7), 2, added=True),
    Case((10, 24, 5, 3), 2),
    Case((10, 24, 5, 3), 1, added=True),
    Case((64, 24), 2),
)
"""Of shapes and settings that ``bench pack`` compiles ahead: others would take a GPU's time for their compilation."""
BOTH = [(case, dtype) for dtype in NEAR for case in CASES]
LINEAR = Case((10, 24, 5, 3), 2, relu=False)
LARGE = Case((256, 2048, 7, 7), 2, added=True)
HUGE_BYTES = 40 << 30


def skip_without(impl: str, dtype: torch.dtype) -> None:
    try:
        choose(impl, "cuda", dtype)
    except UserError as error:
        pytest.skip(str(error))


def there(made: Problem) -> Problem:
    return Problem(*(each.cuda() for each in made))


def here(found: list[Tensor]) -> list[Tensor]:
    return [each.cpu() for each in found]


@pytest.mark.parametrize("impl", ["triton", "native"])
@pytest.mark.parametrize(("case", "dtype"), [*BOTH, (LINEAR, torch.float32)], ids=str)
def test_values_and_gradients_agree_with_fp64_on_the_cpu(impl: str, case: Case, dtype: torch.dtype) -> None:
    skip_without(impl, dtype)
    # What torch rounds before the addition turns ReLU's mask now and then, near 0.
    near = 0.15 if impl == "native" and dtype is not torch.float32 else NEAR[dtype]
    for nhwc in (True, False):
        made = problem(case, dtype, nhwc=nhwc)
        found = here(outcome(there(made), case, impl=impl))
        assert (found[0].dtype, found[1].dtype) == (dtype, dtype)
        assert disagreements(found, truth(made, case), near) == []


def test_a_pass_again_gives_the_same_bits() -> None:
    skip_without("triton", torch.bfloat16)
    made = there(problem(LARGE, torch.bfloat16))
    one, other = (outcome(made, LARGE, impl="triton") for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("impl", ["triton", "native"])
def test_a_recorded_pass_is_replayed_on_other_values(impl: str) -> None:
    skip_without(impl, torch.float32)
    made, others = (there(problem(CASES[1], torch.float32, offset=offset)) for offset in (1.0, 3.0))
    x, weight_C, bias_C = (each.clone().requires_grad_() for each in (made.x, made.weight_C, made.bias_C))

    def step() -> list[Tensor]:
        y = batch_norm_act(x, weight_C, bias_C, options=Options(views=2), impl=impl)
        return [y.detach(), *torch.autograd.grad(y, (x, weight_C, bias_C), made.outer)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles what a capture must not
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        x.copy_(others.x)
    graph.replay()
    replayed = [each.clone() for each in found]
    for value, wanted in zip(replayed, step(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_more_elements_than_32_bits_count() -> None:
    """2,800 images of two views after a ResNet's stem; each view's own last image is held against torch's."""
    skip_without("triton", torch.bfloat16)
    if torch.cuda.mem_get_info()[0] < HUGE_BYTES:
        pytest.skip("less than 40 GB are free on the device")
    shape = (2800, 64, 112, 112)
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last).normal_()
    x[1400:].mul_(2).add_(1)
    assert x.numel() > 1 << 31
    x.requires_grad_()
    weight_C, bias_C = torch.ones(64, device="cuda"), torch.zeros(64, device="cuda")
    y = batch_norm_act(x, weight_C, bias_C, options=Options(views=2), impl="triton")
    # Of so many values the statistics are those that were drawn.
    for at, (mean, std) in ((1399, (0, 1)), (2799, (1, 2))):
        wanted = ((x[at].detach().float() - mean) / std).relu()
        assert (y[at].detach().float() - wanted).abs().max() < 0.05
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    # The mean gradient is taken off, half of the values pass ReLU: +-.5 plus what is proportional to the value.
    for at in (1399, 2799):
        passed = y[at].detach() > 0
        apart = grad[at].float()[passed].mean() - grad[at].float()[~passed].mean()
        assert 0 < apart * (1 if at == 1399 else 2) < 1
