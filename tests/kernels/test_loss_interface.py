"""What a caller of the VICReg loss may rely on: which outputs carry gradients, under autocast too, and what is refused.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastvicreg.contracts import UserError
from fastvicreg.kernels import dispatch
from fastvicreg.kernels import loss as loss_kernel
from fastvicreg.kernels.dispatch import KERNELS, Implementation
from fastvicreg.kernels.loss import cuda, vicreg_loss
from fastvicreg.kernels.loss.operators import Weights, vicreg_operator, vicreg_terms

IMPLEMENTATIONS = ("reference", "gram")


def embeddings(n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    za_ND, zb_ND = (torch.randn(n, d, generator=generator, dtype=dtype) for _ in range(2))
    return za_ND, za_ND + 0.5 * zb_ND


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_only_the_total_carries_a_gradient(impl: str):
    za_ND, zb_ND = (z_ND.requires_grad_() for z_ND in embeddings(6, 11))
    terms = vicreg_loss(za_ND, zb_ND, impl=impl)
    assert terms.total.requires_grad
    assert not any(term.requires_grad for term in terms[1:])
    with torch.no_grad():
        assert not vicreg_loss(za_ND, zb_ND, impl=impl).total.requires_grad


def test_backward_may_run_twice_over_a_retained_graph():
    za_ND, zb_ND = (z_ND.requires_grad_() for z_ND in embeddings(6, 11))
    total = vicreg_loss(za_ND, zb_ND, impl="gram").total
    first_ND, second_ND = (torch.autograd.grad(total, za_ND, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first_ND, second_ND)


def test_gram_refuses_a_second_derivative_that_the_reference_gives():
    za_ND, zb_ND = (z_ND.requires_grad_() for z_ND in embeddings(6, 4))
    with pytest.raises(RuntimeError, match=r"differentiable once.*impl='reference'"):
        torch.autograd.grad(vicreg_loss(za_ND, zb_ND, impl="gram").total, za_ND, create_graph=True)
    (grad_ND,) = torch.autograd.grad(vicreg_loss(za_ND, zb_ND, impl="reference").total, za_ND, create_graph=True)
    (second_ND,) = torch.autograd.grad(grad_ND.square().sum(), za_ND)
    assert second_ND.any()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("n", "d"), [(16, 48), (48, 16)])
def test_autocast_changes_nothing(n: int, d: int, impl: str):
    za_ND, zb_ND = (z_ND.requires_grad_() for z_ND in embeddings(n, d, torch.float32))
    plain = vicreg_loss(za_ND, zb_ND, impl=impl)
    plain_ND, _ = torch.autograd.grad(plain.total, (za_ND, zb_ND))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (za_ND @ zb_ND.T).dtype == torch.bfloat16
        within = vicreg_loss(za_ND, zb_ND, impl=impl)
        if impl == "gram":  # a backward pass of torch's own operations follows the surrounding autocast
            within_ND, _ = torch.autograd.grad(within.total, (za_ND, zb_ND))
            assert torch.equal(within_ND, plain_ND)
    assert all(torch.equal(*pair) for pair in zip(within, plain, strict=True))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)])
def test_compiled_whole_it_gives_the_same(n: int, d: int, impl: str):
    def total(za_ND: Tensor, zb_ND: Tensor) -> Tensor:
        return 3 * vicreg_loss(2 * za_ND, zb_ND, impl=impl).total

    views = tuple(z_ND.requires_grad_() for z_ND in embeddings(n, d))
    torch._dynamo.reset()
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")(*views)
    torch.testing.assert_close(compiled, total(*views), rtol=1e-12, atol=0)
    for found_ND, truth_ND in zip(
        torch.autograd.grad(compiled, views), torch.autograd.grad(total(*views), views), strict=True
    ):
        torch.testing.assert_close(found_ND, truth_ND, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)])
def test_the_operator_is_what_it_declares(n: int, d: int, dtype: torch.dtype):
    views = tuple(z_ND.requires_grad_() for z_ND in embeddings(n, d, dtype))
    torch.library.opcheck(
        vicreg_operator, (*views, [25.0, 25.0, 1.0, 0.5, 1.0, 1e-4], KERNELS["loss"].implementations["gram"].target, "")
    )


@pytest.mark.parametrize("impl", ["cuda", "triton"])
@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)])
def test_a_gpu_s_implementation_is_traced_without_a_gpu(n: int, d: int, impl: str):
    pytest.importorskip(KERNELS["loss"].implementations[impl].target)
    with FakeTensorMode():
        za_ND, zb_ND = (torch.empty(n, d, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        weights = Weights(25.0, 25.0, 1.0, 0.5, 1.0, 1e-4)
        total, *_ = vicreg_terms(za_ND, zb_ND, weights, KERNELS["loss"].implementations[impl].target, "")
        grads = torch.autograd.grad(total, (za_ND, zb_ND))
    assert total.dtype == torch.float32
    assert [(grad_ND.shape, grad_ND.dtype) for grad_ND in grads] == [((n, d), torch.bfloat16)] * 2


@pytest.mark.parametrize(
    ("za_ND", "zb_ND", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), r"\(4, 3\) and \(4, 2\)"),
        (torch.zeros(4, 3, 1), torch.zeros(4, 3, 1), r"\(4, 3, 1\)"),
        (torch.zeros(1, 3), torch.zeros(1, 3), r"N >= 2.*\(1, 3\)"),
        (torch.zeros(4, 0), torch.zeros(4, 0), r"D >= 1.*\(4, 0\)"),
        (torch.zeros(4, 3), torch.zeros(4, 3).double(), "float32 on cpu and torch.float64 on cpu"),
        (torch.zeros(4, 3).int(), torch.zeros(4, 3).int(), "floating point.*int32"),
    ],
)
def test_embeddings_that_do_not_fit_are_named(za_ND: Tensor, zb_ND: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        vicreg_loss(za_ND, zb_ND)


def test_unknown_names_are_named_with_the_nearest():
    views = embeddings(4, 3)
    with pytest.raises(UserError, match="'grm'; did you mean 'gram'"):
        vicreg_loss(*views, impl="grm")
    with pytest.raises(UserError, match="'papers'; did you mean 'paper'"):
        vicreg_loss(*views, form="papers")  # type: ignore[arg-type]


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture):
    loss_kernel.choose.cache_clear()
    with caplog.at_level(logging.INFO, logger=dispatch.__name__):
        for _ in range(3):
            vicreg_loss(*embeddings(4, 3))
    assert [record.getMessage() for record in caplog.records] == ["loss kernel for float64 on cpu: gram (auto)"]


def test_auto_never_takes_a_half_type_s_kernel_for_fp64():
    assert loss_kernel.choose("auto", "cuda", torch.float64).name == "gram"


def test_auto_takes_the_best_that_can_run_on_a_gpu(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    triton_impl = pytest.importorskip("fastvicreg.kernels.loss.triton_impl")
    obstacles = dict.fromkeys((cuda, triton_impl), "")
    for module in obstacles:
        monkeypatch.setattr(module, "obstacle", lambda device, dtype, module=module: obstacles[module])

    def chosen(dtype: torch.dtype) -> str:
        loss_kernel.choose.cache_clear()
        return loss_kernel.choose("auto", "cuda", dtype).name

    try:
        assert [chosen(dtype) for dtype in (torch.bfloat16, torch.float32)] == ["cuda", "cuda"]
        obstacles[cuda] = "it has no compiler"
        with caplog.at_level(logging.INFO, logger=dispatch.__name__):
            assert [chosen(dtype) for dtype in (torch.float16, torch.float32)] == ["triton", "gram"]
        assert [record.getMessage() for record in caplog.records] == [
            "loss kernel for float16 on cuda: triton (auto; not cuda: it has no compiler)",
            "loss kernel for float32 on cuda: gram (auto; not cuda: it has no compiler)",
        ]
        obstacles[triton_impl] = "it is older than sm_80"
        assert chosen(torch.float16) == "gram"
        with pytest.raises(UserError, match="'cuda' cannot run here: it has no compiler; choose auto or gram"):
            loss_kernel.choose("cuda", "cuda", torch.float16)
    finally:
        loss_kernel.choose.cache_clear()


def test_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch):
    absent = Implementation("triton", "fastvicreg_absent.kernels")
    monkeypatch.setitem(KERNELS["loss"].implementations, "triton", absent)
    loss_kernel.choose.cache_clear()
    try:
        with pytest.raises(UserError, match="'triton' cannot run here: fastvicreg_absent is not installed"):
            loss_kernel.choose("triton", "cuda", torch.float16)
    finally:
        loss_kernel.choose.cache_clear()
