"""Norms with an addition and ReLU on the host: against the definition in fp64, and bit for bit against torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from norm_problems import CASES, Case, disagreements, outcome, problem, truth
from torch import nn

from fastvicreg.errors import UserError
from fastvicreg.kernels.norm import BatchNorm, Options, batch_norm_act, fused, torch_passes

NEAR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
ROUNDED_TWICE = {**NEAR, torch.bfloat16: 0.1, torch.float16: 3e-2}
"""Torch rounds before the addition: near 0 the sum's sign, and with it ReLU's mask, turns now and then."""
CASE = Case((4, 24, 33, 9), 2, added=True)


def by_passes(*arguments: Any) -> torch.Tensor:
    return fused.batch_norm_act(torch_passes, *arguments)


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_agree_with_fp64(case: Case, dtype: torch.dtype) -> None:
    made = problem(case, dtype)
    native = ROUNDED_TWICE if case.added else NEAR
    for near, found in ((native, outcome(made, case, impl="native")), (NEAR, outcome(made, case, by_passes))):
        assert (found[0].dtype, found[1].dtype, found[0].stride()) == (dtype, dtype, made.x.stride())
        assert disagreements(found, truth(made, case), near[dtype]) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_gives_torchs_bits(case: Case, dtype: torch.dtype) -> None:
    made = problem(case, dtype)
    found, wanted = outcome(made, case, impl="native"), outcome(made, case, impl="reference")
    assert all(torch.equal(value, other) for value, other in zip(found, wanted, strict=True))


def test_the_definition_is_torchs_batch_norm_view_by_view() -> None:
    made = problem(CASE, torch.float64)
    found = outcome(made, CASE, impl="reference")
    mean_C, var_C = torch.zeros_like(made.weight_C), torch.ones_like(made.weight_C)
    halves = [F.batch_norm(half, mean_C, var_C, made.weight_C, made.bias_C, True) for half in made.x.chunk(2)]
    assert torch.equal(found[0], torch.relu(torch.cat(halves) + made.residual))
    assert torch.equal(found[5], mean_C)
    assert torch.equal(found[6], var_C)


@pytest.mark.parametrize("nhwc", [True, False])
def test_any_memory_order(nhwc: bool) -> None:
    made = problem(CASE, torch.float64, nhwc=nhwc)
    for found in (outcome(made, CASE, impl="native"), outcome(made, CASE, by_passes)):
        assert disagreements(found, truth(made, CASE), 1e-12) == []


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_large_common_offset_loses_no_digits(offset: float) -> None:
    made = problem(CASE, torch.float32, offset=offset)
    assert disagreements(outcome(made, CASE, by_passes), truth(made, CASE), 3e-5) == []


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_a_nan_shows_in_its_channel_alone(impl: str) -> None:
    made = problem(CASE, torch.float32)
    made.x[1, 3, 2, 2] = float("nan")
    y = outcome(made, CASE, impl=impl)[0]
    assert torch.isnan(y[:2, 3]).all()
    assert torch.isfinite(y[:, :3]).all()
    assert torch.isfinite(y[2:]).all()


def test_a_frozen_input_or_scale_is_left_out() -> None:
    made = problem(CASE, torch.float64)
    wanted = truth(made, CASE)
    for run in (None, by_passes):
        for trained in ("x", "weight_C"):
            each = {name: getattr(made, name).clone() for name in ("x", "residual", "weight_C", "bias_C")}
            each[trained].requires_grad_()
            options = Options(views=2)
            if run is None:
                y = batch_norm_act(
                    each["x"], each["weight_C"], each["bias_C"], residual=each["residual"], options=options
                )
            else:
                y = run(*each.values(), None, options)
            (grad,) = torch.autograd.grad(y, each[trained], made.outer)
            torch.testing.assert_close(grad, wanted[1 if trained == "x" else 3], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("views", [1, 2])
def test_a_compiler_takes_it_whole(impl: str, views: int) -> None:
    case = Case((4, 16, 5, 5), views, added=True)
    made = problem(case, torch.float64)

    def run(x: Any, residual: Any, weight_C: Any, bias_C: Any, running: Any, options: Any) -> torch.Tensor:
        return batch_norm_act(x, weight_C, bias_C, residual=residual, running=running, options=options, impl=impl)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert disagreements(outcome(made, case, compiled), truth(made, case), 1e-12) == []


@pytest.mark.parametrize(
    ("shape", "views", "said"),
    [((3, 4), 2, "a batch of 3 does not hold 2 views"), ((2, 4, 1, 1), 2, "more than one value"), ((4,), 1, "takes")],
)
def test_what_cannot_be_normalised_is_refused(shape: tuple[int, ...], views: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        batch_norm_act(torch.ones(shape), torch.ones(4), torch.ones(4), options=Options(views=views))


def test_an_implementation_that_cannot_run_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"the norm kernel 'triton' cannot run here: .*; choose auto or native"):
        batch_norm_act(torch.ones(4, 4), torch.ones(4), torch.ones(4), impl="triton")
    with pytest.raises(UserError, match="unknown norm kernel 'nativ'; did you mean 'native'"):
        batch_norm_act(torch.ones(4, 4), torch.ones(4), torch.ones(4), impl="nativ")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("settings", [{"affine": False}, {"bias": False}, {}], ids=str)
def test_a_module_stands_for_torchs_with_or_without_scale_and_shift(settings: dict[str, bool], recompute: bool) -> None:
    """SimSiam's projector ends in a norm that has neither."""
    torch.manual_seed(0)
    try:
        theirs = nn.BatchNorm1d(6, **settings).double()
    except TypeError:
        pytest.skip("this torch has no batch norm with a scale alone")
    own = BatchNorm.of(copy.deepcopy(theirs), recompute=recompute)
    assert list(own.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in own.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    x = torch.randn(12, 6, dtype=torch.float64)
    for training in (True, False):
        gradients = []
        for norm in (own.train(training), theirs.train(training)):
            leaf = x.clone().requires_grad_()
            norm(leaf).square().mul(torch.arange(6.0)).sum().backward()
            assert leaf.grad is not None
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=1e-12, atol=1e-12)
