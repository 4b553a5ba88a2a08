"""What a caller of the VICReg loss may rely on: which outputs carry gradients, under autocast too, and what is refused.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from fastvicreg.contracts import UserError
from fastvicreg.kernels import loss as loss_kernel
from fastvicreg.kernels.loss import vicreg_loss

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
    with caplog.at_level(logging.INFO, logger=loss_kernel.__name__):
        for _ in range(3):
            vicreg_loss(*embeddings(4, 3))
    assert [record.getMessage() for record in caplog.records] == [
        "loss implementation: auto (fastvicreg.kernels.loss.gram:vicreg_terms)"
    ]
