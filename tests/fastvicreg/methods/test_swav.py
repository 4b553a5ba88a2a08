"""SwAV on two views: the published loss's values, even assignments, and prototypes of length 1."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from methods import batch_of, encoder
from torch import Tensor
from vectors import assert_vector, embeddings

from fastvicreg.kernels.loss.ranks import Ranks
from fastvicreg.methods.swav.config import SwAVConfig
from fastvicreg.methods.swav.method import SwAV, sinkhorn, swapped_prediction
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater


def prototypes() -> Tensor:
    r, j = torch.arange(6.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    return F.normalize((0.3 * r + 1.1 * j).cos(), dim=1)


def swav(**settings: object) -> SwAV:
    torch.manual_seed(0)
    return SwAV(encoder(), SwAVConfig(projector=(24, 8), prototypes=12, **settings))  # type: ignore[arg-type]


def test_the_loss_has_the_published_form_s_value_and_gradients() -> None:
    """facebookresearch/swav's main_swav.py: T .1, eps .05, 3 iterations, 6 prototypes."""
    expected = 1.432893166458, 0.268458673267, 0.264992229132
    assert_vector(lambda za, zb: swapped_prediction(za, zb, prototypes()), *expected)


def test_the_first_row_of_codes_is_the_published_code_s() -> None:
    za = embeddings()[0].detach()
    codes = sinkhorn(F.normalize(za, dim=1) @ prototypes().T, 0.05, 3, Ranks())
    expected = [0.8936141581, 0.1034056138, 0.0029474249, 3.26789e-05]
    assert codes[0, :4].tolist() == pytest.approx(expected, abs=1e-9)


def test_codes_are_shares_that_use_every_prototype_evenly() -> None:
    scores = (
        F.normalize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=1)
        @ F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), dim=1).T
    )
    codes = sinkhorn(scores, 0.05, 50, Ranks())
    torch.testing.assert_close(codes.sum(1), torch.ones(64))
    torch.testing.assert_close(codes.sum(0), torch.full((6,), 64 / 6), rtol=0.02, atol=0)
    assert torch.isfinite(sinkhorn(torch.ones(4, 3), 0.02, 3, Ranks())).all()


def run(method: SwAV, steps: int) -> list[Tensor]:
    """The prototypes after each step."""
    step = EagerStep(method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0)))
    seen = []
    for _ in range(steps):
        step(batch_of(6), {"lr": 0.5})
        seen.append(method.prototypes.weight.detach().clone())
    return seen


def test_prototypes_keep_length_1_and_stay_until_they_thaw() -> None:
    method = swav(freeze_prototypes=2)
    start = method.prototypes.weight.detach().clone()
    seen = run(method, 4)
    for weight in (start, *seen):
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(seen[1], start)
    assert float((seen[2] - start).abs().max()) > 1e-4
    assert int(method.updates) == 4


def test_a_frozen_prototype_s_value_is_used_and_its_gradient_dropped() -> None:
    for frozen in (0, 1):
        method = swav(freeze_prototypes=frozen)
        terms = method.loss(method.embed(batch_of(6).views), None)
        terms.total.backward()
        assert method.prototypes.weight.grad is not None
        assert bool(method.prototypes.weight.grad.any()) == (not frozen)


@pytest.mark.parametrize("finite", [False, torch.tensor(False)])
def test_a_skipped_step_leaves_prototypes_and_count(finite: bool | Tensor) -> None:
    method = swav()
    with torch.no_grad():
        method.prototypes.weight.mul_(1.5)
    before = method.prototypes.weight.detach().clone()
    method.after_update({}, finite)
    assert torch.equal(method.prototypes.weight, before)
    assert int(method.updates) == 0
