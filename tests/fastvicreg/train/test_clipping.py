"""Gradient clipping: both forms against their formulas, once a step, behind the loss scale, and never past the gate."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import TracedGraphs
from refusing import assert_refused
from runs import log, require_same_when_resumed, tiny
from skipping import Skipping
from stepping import assert_alike, batches, double, held, lars, plain, run, vicreg
from torch import Tensor, nn
from waits import Waits

from fastvicreg.train.clipping import Clipping
from fastvicreg.train.steps.cached.step import CachedStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.steps.graphed.step import GraphedStep
from fastvicreg.train.updater import NON_FINITE, Updater

BY: tuple[Any, ...] = ("total", "parameter")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def given_gradients(net: nn.Module, sizes: tuple[float, ...] = (8.0, 0.3, 2.0, 0.0)) -> None:
    """One of each norm of ``sizes`` in turn."""
    generator = torch.Generator().manual_seed(1)
    for param, size in zip(net.parameters(), sizes, strict=True):
        grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        param.grad = size * grad / grad.norm()


def grads_of(net: nn.Module) -> list[Tensor]:
    return [param.grad for param in net.parameters() if param.grad is not None]


def test_each_parameter_s_own_norm_is_limited_as_dino_writes_it() -> None:
    net, other = network(), network()
    given_gradients(net)
    given_gradients(other)
    whole = torch.cat([grad.flatten() for grad in grads_of(other)]).norm()
    found = Clipping(1.5, "parameter")(grads_of(net))
    assert float(found) == pytest.approx(float(whole), rel=1e-14)
    for param in other.parameters():  # facebookresearch/dino, utils.clip_gradients
        assert param.grad is not None
        share = 1.5 / (param.grad.norm(2) + 1e-6)
        if share < 1:
            param.grad.mul_(share)
    assert [float(grad.norm()) for grad in grads_of(net)] == pytest.approx([1.5, 0.3, 1.5, 0.0], rel=1e-6)
    for one, wanted in zip(grads_of(net), grads_of(other), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize("limit", [1.5, 50.0])
def test_the_norm_of_all_is_limited_as_torch_does(limit: float) -> None:
    net, other = network(), network()
    given_gradients(net)
    given_gradients(other)
    found = Clipping(limit)(grads_of(net))
    wanted = torch.nn.utils.clip_grad_norm_(other.parameters(), limit)
    assert float(found) == pytest.approx(float(wanted), rel=1e-14)
    for one, expected in zip(grads_of(net), grads_of(other), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, Skipping])
def test_gradients_are_clipped_behind_fp16_s_loss_scale(by: Any, optimizer: Any) -> None:
    net, other = network().float(), network().float()
    batch = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
    updater = Updater(net, optimizer(net.parameters(), lr=0.0), precision="fp16", clipping=Clipping(1e-3, by))
    updater.set_rates({"lr": 0.5})
    updater.begin()
    total = net(batch).square().mean()
    updater.backward(total)
    assert float(net[0].weight.grad.norm()) > 100  # type: ignore[union-attr]
    update = updater(total.detach())
    assert bool(update.finite)
    other(batch).square().mean().backward()
    norm = Clipping(1e-3, by)(grads_of(other))
    assert float(update.norm) == pytest.approx(float(norm), rel=1e-5)  # type: ignore[arg-type]
    for one, param in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, param - 0.5 * param.grad, rtol=1e-5, atol=1e-7)  # type: ignore[operator]


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [("off", Skipping), ("fp16", Skipping), ("fp16", torch.optim.SGD), ("off", torch.optim.SGD)],
)
def test_what_is_not_finite_is_gated_as_without(by: Any, precision: str, optimizer: Any) -> None:
    net = network().float()
    updater = Updater(net, optimizer(net.parameters(), lr=0.0), precision=precision, clipping=Clipping(1.0, by))
    before = copy.deepcopy(net.state_dict())
    for spoilt in (torch.nan, torch.inf):
        updater.set_rates({"lr": 0.5})
        updater.begin()
        total = net(torch.ones(4, 6) * spoilt).square().mean()
        updater.backward(total)
        if precision == "off" and optimizer is torch.optim.SGD:
            with pytest.raises(RuntimeError, match=NON_FINITE):
                updater(total.detach())
        else:
            assert not bool(updater(total.detach()).finite)
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("by", BY)
def test_the_host_waits_for_nothing(by: Any) -> None:
    method = vicreg()
    step = EagerStep(method, Updater(method, lars(method, capturable=True), clipping=Clipping(0.01, by)))
    rows = run(step, 2)
    assert rows[0]["grad_norm"] > 0.01
    with Waits() as waits:
        step(batches(1)[0], {"lr": 0.1})
    assert not waits.found


@pytest.mark.parametrize("by", BY)
def test_a_cached_step_clips_once_and_a_replayed_one_at_every_step(by: Any) -> None:
    methods = [plain() for _ in range(3)]
    eager, cached, replayed = methods
    optimizer = lars(replayed, capturable=True)
    limit = Clipping(0.05, by)
    steps = [
        EagerStep(eager, Updater(eager, lars(eager), clipping=limit)),
        CachedStep(cached, Updater(cached, lars(cached), clipping=limit), micro_batches=4),
        GraphedStep(
            replayed,
            Updater(replayed, optimizer, clipping=limit),
            graphs=TracedGraphs(lambda: held(replayed, optimizer)),
        ),
    ]
    found = [run(step, 6, dtype=torch.float64) for step in steps]
    assert all(row["grad_norm"] > 0.05 for row in found[0])
    for rows in found[1:]:
        for row, wanted in zip(rows, found[0], strict=True):
            assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-6)
    assert_alike(cached, eager, rtol=1e-9, atol=1e-11)
    assert_alike(replayed, eager, rtol=1e-6, atol=1e-9)  # its learning rate is an fp32 scalar
    free = plain()
    unclipped = run(EagerStep(free, Updater(free, lars(free))), 2, dtype=torch.float64)
    assert "grad_norm" not in unclipped[0]
    with pytest.raises(AssertionError):
        assert_alike(free, eager, rtol=1e-3, atol=1e-5)


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    one, other = plain(), plain()
    step = EagerStep(one, Updater(one, lars(one), clipping=Clipping(1e6)))
    step(double(batches(1)[0]), {"lr": 0.1})
    EagerStep(other, Updater(other, lars(other)))(double(batches(1)[0]), {"lr": 0.1})
    assert_alike(one, other, rtol=0, atol=0)


def test_the_norm_is_a_column_and_a_resumed_run_is_the_same(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny(uninterrupted[0])
    config = replace(config, optim=replace(config.optim, clip=0.5, clip_by="parameter"))
    rows = [row for row in log(require_same_when_resumed(config, tmp_path)) if "total" in row]
    assert all(row["grad_norm"] > 0 for row in rows)
    assert "grad " in (tmp_path / "display.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--clip", "-1"), "--clip -1.0 is too small: give 0.0 or more"),
        (("--clip", "nan"), "--clip nan is too small"),
        (("--clip", "inf"), "--clip inf cannot train: give a finite value"),
        (("--clip-by", "parameter"), "--clip-by parameter has nothing to clip: give --clip a norm above 0"),
        (("--clip", "3", "--clip-by", "layer"), "layer"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(arguments, line, tmp_path / "run", capsys)
