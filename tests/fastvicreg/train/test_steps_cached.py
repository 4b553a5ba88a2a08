"""Gradient caching: the whole batch's loss and gradients with a part of its activations in memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from methods import METHOD_CONFIGS, batch_of
from runs import log, tiny, train
from stepping import (
    RATES,
    Small,
    any_method,
    assert_alike,
    batches,
    byol,
    double,
    lars,
    plain,
    run,
    totals,
    vicreg,
)
from torch import Tensor

from fastvicreg.contracts import Terms
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg
from fastvicreg.train.steps.cached.config import CachedConfig
from fastvicreg.train.steps.cached.step import CachedStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_method_is_cached(name: str) -> None:
    eager, cached = any_method(name), any_method(name)
    wanted = totals(eager, EagerStep(eager, Updater(eager, lars(eager))))
    found = totals(cached, CachedStep(cached, Updater(cached, lars(cached)), micro_batches=1))
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_cached_gradients_are_the_whole_batch_s_where_no_batch_norm_looks_across(micro_batches: int) -> None:
    whole, cached = plain(), plain()
    for method, step in (
        (whole, EagerStep(whole, Updater(whole, torch.optim.SGD(whole.parameters(), lr=0.0)))),
        (
            cached,
            CachedStep(
                cached, Updater(cached, torch.optim.SGD(cached.parameters(), lr=0.0)), micro_batches=micro_batches
            ),
        ),
    ):
        terms = step(double(batch_of(8)), {"lr": 0.0})
        assert terms.total.isfinite(), method
    for one, other in zip(cached.parameters(), whole.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-13)


class ByPart(VICReg):
    """In one pass, with the statistics that a cached step of two micro-batches has."""

    def embed(self, views: tuple[Tensor, ...]) -> Any:
        parts = [VICReg.embed(self, part) for part in zip(*(view.chunk(2) for view in views), strict=True)]
        one, other = parts
        return one._replace(
            views_BD=tuple(map(torch.cat, zip(one.views_BD, other.views_BD, strict=True))),
            features_BF=torch.cat((one.features_BF, other.features_BF)),
        )


def test_cached_equals_one_pass_with_statistics_by_micro_batch() -> None:
    torch.manual_seed(0)
    whole = ByPart(Small(), VICRegConfig(expander=(32, 24)), impl="reference").double()
    cached = vicreg().double()
    for method, kind in ((whole, EagerStep), (cached, CachedStep)):
        settings: dict[str, Any] = {"micro_batches": 2} if kind is CachedStep else {}
        step = kind(method, Updater(method, lars(method)), **settings)
        for batch in batches(3):
            step(double(batch), RATES[0])
    assert_alike(cached, whole, rtol=1e-9, atol=1e-11)
    assert int(cached.state_dict()["encoder.bn1.num_batches_tracked"]) == 3 * 2 * 2  # steps, views, micro-batches


class Watched(VICReg):
    """Notes whether each pass takes gradients, and of which rows it is."""

    passes: ClassVar[list[tuple[bool, float]]] = []

    def embed(self, views: tuple[Tensor, ...]) -> Any:
        self.passes.append((torch.is_grad_enabled(), float(views[0][0, 0, 0, 0])))
        return super().embed(views)


def test_of_all_micro_batches_but_the_first_there_are_two_passes() -> None:
    method = Watched(Small(), VICRegConfig(expander=(32, 24)), impl="reference").double()
    method.passes.clear()
    batch = double(batches(1)[0])
    CachedStep(method, Updater(method, lars(method)), micro_batches=4)(batch, RATES[0])
    one, two, three, four = (float(rows[0, 0, 0, 0]) for rows in batch.views[0].chunk(4))
    without, kept = [(False, two), (False, three), (False, four)], (True, one)
    assert method.passes == [*without, kept, (True, two), (True, three), (True, four)]


def test_each_micro_batch_has_its_gradient_in_bf16() -> None:
    """Weights that autocast casts in a pass without gradient are no leaves' casts in the next."""
    whole, cached = plain().float(), plain().float()
    steps = [
        EagerStep(whole, Updater(whole, torch.optim.SGD(whole.parameters(), lr=0.0)), precision="bf16"),
        CachedStep(
            cached, Updater(cached, torch.optim.SGD(cached.parameters(), lr=0.0)), precision="bf16", micro_batches=4
        ),
    ]
    for step in steps:
        step(batch_of(8), {"lr": 0.0})
    for (name, one), other in zip(cached.named_parameters(), whole.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert (one.grad - other.grad).norm() < 0.05 * other.grad.norm(), name


def test_cached_skips_what_is_not_finite_and_leaves_the_target() -> None:
    method = byol()
    step = CachedStep(method, Updater(method, lars(method, capturable=True)), micro_batches=2)
    run(step, 2)
    before = copy.deepcopy(method.state_dict())
    batch = batches(1)[0]
    step(replace(batch, views=tuple(view * torch.nan for view in batch.views)), RATES[0])
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_replaced_loss_keeps_the_kind_of_step() -> None:
    method, rows = vicreg(), []

    def counted(embeddings: Any, targets: None) -> Terms:
        rows.append(len(embeddings.views_BD[0]))
        return Terms(embeddings.views_BD[0].square().mean(), {})

    step = CachedStep(method, Updater(method, lars(method)), micro_batches=4)
    other = step.replaced(loss=counted)
    assert type(other) is CachedStep
    assert run(other, 1)[0].keys() == {"total"}
    assert rows == [8]  # the whole batch's, once


def test_a_misspelt_setting_is_refused() -> None:
    method = vicreg()
    with pytest.raises(TypeError, match="micro_batch"):
        CachedStep(method, Updater(method, lars(method)), micro_batches=4, micro_batch=2)


def test_a_cached_run_stopped_and_resumed_is_the_same_run(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    config = replace(tiny(data), step=CachedConfig(1))
    train(replace(config, run=replace(config.run, steps=4)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    for row, other in zip(log(tmp_path / "run"), log(whole), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
