"""VICReg and the step, against the loss's definition and plain autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from methods import batch_of, encoder
from torch import nn

from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg
from fastvicreg.optim import LARS
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater


def vicreg(*, impl: str = "auto", **weights: Any) -> VICReg:
    torch.manual_seed(0)
    return VICReg(encoder(), VICRegConfig(expander=(16, 12), **weights), impl=impl)


def test_terms_are_the_losses_on_the_expanded_features() -> None:
    method, views = vicreg(invariance=3.0, variance=5.0, covariance=7.0), batch_of(6).views
    twin = copy.deepcopy(method)
    terms = method.loss(method.embed(views), method.target(views))
    za, zb = (twin.expander(twin.encoder(view)) for view in views)
    expected = vicreg_loss(za, zb, invariance=3.0, variance=5.0, covariance=7.0, impl="reference")
    torch.testing.assert_close(terms.total, expected.total)
    for name in ("invariance", "variance", "covariance"):
        torch.testing.assert_close(terms.parts[name], getattr(expected, name).detach())
    assert not any(part.requires_grad for part in terms.parts.values())
    std = (za.std(0).mean() + zb.std(0).mean()) / 2
    torch.testing.assert_close(terms.parts["embedding_std"], std.detach())
    assert terms.parts["covariance_minimum"] <= terms.parts["covariance_independent"]


def test_with_a_predictor_the_invariance_is_of_its_output() -> None:
    method, views = vicreg(predictor=True, invariance=3.0, variance=5.0, covariance=7.0), batch_of(6).views
    za, zb = (method.expander(method.encoder(view)) for view in views)
    assert method.predictor is not None
    pa, pb = method.predictor(za), method.predictor(zb)
    others = vicreg_loss(za, zb, invariance=0.0, variance=5.0, covariance=7.0, impl="reference").total
    distance = ((pa - zb).square().mean() + (pb - za).square().mean()) / 2
    terms = method.loss(method.embed(views), None)
    torch.testing.assert_close(terms.total, others + 3.0 * distance)
    torch.testing.assert_close(terms.parts["invariance"], distance.detach())
    parameters = list(method.parameters())
    wanted = torch.autograd.grad(others + 3.0 * distance, parameters)
    for found, expected in zip(torch.autograd.grad(terms.total, parameters), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    trained = {id(param) for group in method.param_groups() for param in group.params}
    assert trained == {id(param) for param in parameters}


@pytest.mark.parametrize("predictor", [False, True])
def test_batch_norm_can_be_left_out_of_the_heads(predictor: bool) -> None:
    norms = {}
    for batch_norm in (True, False):
        method = vicreg(predictor=predictor, batch_norm=batch_norm)
        heads = [name for name, part in method.named_modules() if isinstance(part, nn.BatchNorm1d)]
        norms[batch_norm] = sorted(name.partition(".")[0] for name in heads)
    assert norms == {True: ["expander", "predictor"][: 1 + predictor], False: []}


def test_two_views_are_needed() -> None:
    with pytest.raises(ValueError, match="2 views or more, not 1"):
        vicreg().embed(batch_of(6).views[:1])


@pytest.mark.parametrize("impl", ["reference", "gram"])
def test_ten_steps_equal_plain_autograd_and_the_written_out_update(impl: str) -> None:
    own = vicreg(impl=impl).double()
    twin = copy.deepcopy(own)
    batch = batch_of(6, torch.float64)
    step = EagerStep(own, Updater(own, LARS(own.parameters(), lr=0.0, weight_decay=1e-3, eta=0.1)))
    moments = [torch.zeros_like(p) for p in twin.parameters()]
    for number in range(10):
        lr = 0.01 * (number + 1)
        step(batch, {"lr": lr})
        za, zb = (twin.expander(twin.encoder(view)) for view in batch.views)
        total = vicreg_loss(za, zb, impl="reference").total
        gradients = torch.autograd.grad(total, list(twin.parameters()))
        with torch.no_grad():
            for p, g, m in zip(twin.parameters(), gradients, moments, strict=True):
                if p.ndim > 1:
                    g = g + 1e-3 * p
                    if p.norm() > 0 and g.norm() > 0:
                        g = 0.1 * p.norm() / g.norm() * g
                m.mul_(0.9).add_(g)
                p.sub_(lr * m)
    for left, right in zip(own.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_the_variance_term_prevents_the_collapse_that_its_absence_brings() -> None:
    spread = {}
    for variance in (25.0, 0.0):
        method, batch = vicreg(variance=variance), batch_of(6)
        optimizer = torch.optim.SGD(method.parameters(), lr=0.0, momentum=0.9)
        step = EagerStep(method, Updater(method, optimizer))
        terms = [step(batch, {"lr": 0.01}) for _ in range(60)]
        spread[variance] = float(terms[-1].parts[method.spread.part])
    assert spread[0.0] < 0.2 * spread[25.0]
