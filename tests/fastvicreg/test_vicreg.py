"""The objective and the step, against the loss's definition and plain autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastvicreg.config import ObjectiveConfig
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.model import resnet
from fastvicreg.objectives import build_objective
from fastvicreg.optim import LARS
from fastvicreg.step import TrainStep
from fastvicreg.updater import Updater


def parts(**weights: float) -> tuple[nn.Module, nn.Module, tuple[torch.Tensor, ...]]:
    """A tiny encoder, its objective, and two views."""
    torch.manual_seed(0)
    encoder = resnet("resnet18", width=16, stem="3x3s2")
    objective = build_objective(ObjectiveConfig(**weights), encoder.features, (16, 12))  # type: ignore[arg-type]
    views = tuple(torch.randn(6, 3, 16, 16).to(memory_format=torch.channels_last) for _ in range(2))
    return encoder, objective, views


def test_terms_are_the_losses_on_the_expanded_features() -> None:
    encoder, objective, views = parts(invariance=3.0, variance=5.0, covariance=7.0)
    twin, twin_encoder = copy.deepcopy(objective), copy.deepcopy(encoder)
    terms = objective(views, encoder)
    za, zb = (twin.expander(twin_encoder(view)) for view in views)  # type: ignore[operator]
    expected = vicreg_loss(za, zb, invariance=3.0, variance=5.0, covariance=7.0, impl="reference")
    torch.testing.assert_close(terms.total, expected.total)
    for name in ("invariance", "variance", "covariance"):
        torch.testing.assert_close(terms.parts[name], getattr(expected, name).detach())
    assert not any(part.requires_grad for part in terms.parts.values())
    std = (za.std(0).mean() + zb.std(0).mean()) / 2
    torch.testing.assert_close(terms.parts["embedding_std"], std.detach())
    assert terms.parts["covariance_minimum"] <= terms.parts["covariance_independent"]


def test_two_views_are_needed() -> None:
    encoder, objective, views = parts()
    with pytest.raises(ValueError, match="2 views, not 1"):
        objective(views[:1], encoder)


@pytest.mark.parametrize("impl", ["reference", "gram"])
def test_ten_steps_equal_plain_autograd_and_the_written_out_update(impl: str) -> None:
    encoder, objective, views = parts()
    objective._impl = impl  # type: ignore[assignment]
    twin = copy.deepcopy(nn.ModuleDict({"encoder": encoder, "objective": objective})).double()
    own = nn.ModuleDict({"encoder": encoder, "objective": objective}).double()
    views = tuple(view.double() for view in views)
    optimizer = LARS(own.parameters(), lr=0.0, weight_decay=1e-3, eta=0.1)
    step = TrainStep(encoder, objective, Updater(own, optimizer))
    moments = [torch.zeros_like(p) for p in twin.parameters()]
    for number in range(10):
        lr = 0.01 * (number + 1)
        step(views, {"lr": lr})
        za, zb = (twin["objective"].expander(twin["encoder"](view)) for view in views)  # type: ignore[operator]
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


def test_the_variance_term_prevents_the_collapse_that_its_absence_brings() -> None:
    spread = {}
    for variance in (25.0, 0.0):
        encoder, objective, views = parts(variance=variance)
        module = nn.ModuleDict({"encoder": encoder, "objective": objective})
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)
        step = TrainStep(encoder, objective, Updater(module, optimizer))
        terms = [step(views, {"lr": 0.01}) for _ in range(60)]
        spread[variance] = float(terms[-1].parts["embedding_std"])
    assert spread[0.0] < 0.2 * spread[25.0]
