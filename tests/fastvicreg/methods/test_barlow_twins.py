"""Barlow Twins: the published loss's values, the Gram form against the correlation form, and the two learning rates."""

from __future__ import annotations

import pytest
import torch
from methods import encoder
from torch import Tensor, nn
from vectors import assert_vector

from fastvicreg.config import OptimConfig
from fastvicreg.methods.barlow_twins.config import BarlowTwinsConfig
from fastvicreg.methods.barlow_twins.method import BarlowTwins, correlation_sums, standardised
from fastvicreg.methods.two_views import Projections
from fastvicreg.train.assemble import build_optimizer
from fastvicreg.train.updater import Updater


def barlow(**settings: object) -> BarlowTwins:
    torch.manual_seed(0)
    return BarlowTwins(encoder(), BarlowTwinsConfig(projector=(24, 16), **settings))  # type: ignore[arg-type]


def test_the_loss_has_the_published_form_s_value_and_gradients() -> None:
    """facebookresearch/barlowtwins's main.py: lambda .0051, biased variance, eps 1e-5."""

    def loss(za: Tensor, zb: Tensor) -> Tensor:
        return barlow().loss(Projections(za, zb), None).total

    assert_vector(loss, 0.013699822920, 0.016009930494, 0.013973005700)


def test_the_loss_scale_is_a_factor() -> None:
    za, zb = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)).unbind()
    whole, scaled = (barlow(loss_scale=s).loss(Projections(za, zb), None).total for s in (1.0, 0.1))
    torch.testing.assert_close(scaled, whole * 0.1)


@pytest.mark.parametrize(("n", "d"), [(5, 12), (12, 5), (8, 8), (2, 3), (40, 2)])
def test_gram_and_correlation_form_are_one(n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n * d)
    views = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    results = []
    for form in ("gram", "correlation", "auto"):
        za, zb = (view.clone().requires_grad_() for view in views)
        sums = correlation_sums(za, zb, form=form)
        gradients = torch.autograd.grad(sums.diagonal + 0.3 * sums.off_diagonal, (za, zb))
        results.append((*sums, *gradients))
    for other in results[1:]:
        for found, wanted in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_no_matrix_of_d_by_d_is_made_where_the_batch_is_smaller() -> None:
    largest = 0

    class Widest(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    n, d = 6, 500
    with Widest():
        correlation_sums(torch.randn(n, d), torch.randn(n, d))
    assert largest == n * d
    with Widest():  # negative control
        correlation_sums(torch.randn(n, d), torch.randn(n, d), form="correlation")
    assert largest == d * d


def test_views_are_standardised_as_by_batch_norm() -> None:
    z = 3 + 2 * torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(standardised(z), nn.BatchNorm1d(7, affine=False)(z))


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_biases_and_norms_have_a_learning_rate_of_their_own(optimizer: str) -> None:
    method = barlow()
    config = OptimConfig(optimizer=optimizer, base_lr=0.2)  # type: ignore[arg-type]
    built = build_optimizer(config, method.param_groups(), batch_size=256)
    Updater(method, built).set_rates({"lr": 0.2})
    rates = {id(param): group["lr"] for group in built.param_groups for param in group["params"]}
    for name, param in method.named_parameters():
        assert rates[id(param)] == pytest.approx(0.2 if param.ndim > 1 else 0.0048), name
