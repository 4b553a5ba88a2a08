"""What every method must do alike: skip a step without a trace, wait for no device, resume bit for bit, train among
several processes as in one."""

from __future__ import annotations

import copy
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from methods import BRANCHED_CONFIGS, METHOD_CONFIGS, batch_for, built
from runs import log, tiny, train
from skipping import Skipping
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastvicreg.contracts import Horizon
from fastvicreg.methods import METHODS, MethodConfig
from fastvicreg.methods.settings import Regularized
from fastvicreg.train.batch_norm import own_group, replace_norms
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater

CONFIGS: dict[str, MethodConfig] = (
    METHOD_CONFIGS
    | BRANCHED_CONFIGS
    | {
        f"{name} regularized": replace(config, variance=1.0, covariance=0.1)
        for name, config in METHOD_CONFIGS.items()
        if isinstance(config, Regularized)
    }
)
AMONG_TWO = [name for name in CONFIGS if name in ("vicreg", "vicregl") or "regularized" in name or "branched" in name]
HORIZON = Horizon(10, 5, 16)


def scalars(method: Any, step: int) -> dict[str, float]:
    return {"lr": 0.05, **{name: schedule(step) for name, schedule in method.schedules(HORIZON).items()}}


def test_every_method_is_tested() -> None:
    assert METHOD_CONFIGS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", [*METHOD_CONFIGS, *BRANCHED_CONFIGS])
def test_parameter_groups_hold_each_trained_parameter_once(name: str) -> None:
    method = built(CONFIGS[name])
    held = [param for group in method.param_groups() for param in group.params]
    assert len({id(param) for param in held}) == len(held)
    assert {id(param) for param in held} == {id(p) for p in method.parameters() if p.requires_grad}
    terms = method.loss(method.embed(batch_for(method, 8).inputs), method.target(batch_for(method, 8).inputs))
    terms.total.backward()
    assert all(param.grad is not None for param in held), "DistributedDataParallel would wait for it"


@pytest.mark.parametrize("name", CONFIGS)
def test_its_columns_and_spread_are_parts_of_its_loss(name: str) -> None:
    method = built(CONFIGS[name])
    terms = method.loss(method.embed(batch_for(method, 8).inputs), method.target(batch_for(method, 8).inputs))
    shown = {column.name for column in method.columns}
    shown |= {part for column in method.columns for part in column.beside.values()}
    assert {*shown, method.spread.part} <= terms.parts.keys()
    assert not any(part.requires_grad or part.ndim for part in terms.parts.values())


CAUSES: list[tuple[str, dict[str, Any]]] = [
    ("vicreg", {"variance": 0.0}),
    ("vicreg", {"variance": 1.0}),
    ("vicregl", {"variance": 0.0}),
    ("vicregl", {"variance": 1.0}),
    ("byol", {"predictor": False}),
    ("byol", {"momentum": 0.5}),
    ("byol", {"momentum": 0.99, "momentum_encoder": False, "stop_gradient": False}),
    ("simsiam", {"predictor": False}),
    ("simsiam", {"stop_gradient": False}),
    ("simsiam", {"batch_norm": False}),
    ("simclr", {"temperature": 2.0}),
    ("moco", {"momentum": 0.5}),
    ("moco", {"temperature": 2.0}),
    ("wmse", {"w_eps": 0.9}),
    ("swav", {"sharpness": 0.1}),
    ("dino", {"teacher_temperature": 0.2, "teacher_warmup": 5}),
    ("dino", {"center_momentum": 1.0}),
    ("dino", {"momentum": 0.5}),
]


@pytest.mark.parametrize(("name", "settings"), CAUSES)
def test_a_collapse_s_likely_cause_names_the_flag_that_helps(name: str, settings: dict[str, Any]) -> None:
    config = replace(METHOD_CONFIGS[name], **settings)  # type: ignore[type-var]
    config.check()
    cause = built(config).spread.cause
    flags = [flag.removeprefix("no-").replace("-", "_") for flag in re.findall(r"--([a-z0-9-]+)", cause)]
    assert set(flags) & set(settings)
    assert set(flags) <= {field.name for field in fields(config)}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_published_settings_name_no_cause_but_the_learning_rate(name: str) -> None:
    method = built(METHOD_CONFIGS[name])
    assert method.spread.cause == ""
    assert method.spread.healthy > 0


MANY = ("vicreg", "swav", "dino", "vicregl")
"""Methods that take more than two views."""


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_a_number_of_views_that_it_does_not_take_is_refused(name: str) -> None:
    method = built(METHOD_CONFIGS[name])
    batch = batch_for(method, 8)
    views = batch.views
    given, says = (views[:1], "or more, not 1") if name in MANY else ((*views, views[0]), "takes 2 views, not 3")
    with pytest.raises(ValueError, match=says):
        method.embed(replace(batch, views=given).inputs)


@pytest.mark.parametrize("name", [*METHOD_CONFIGS, *BRANCHED_CONFIGS])
def test_a_skipped_step_leaves_everything_bit_for_bit(name: str) -> None:
    """By an optimizer that reads the flag on the device, after two steps that counted."""
    method = built(CONFIGS[name])
    step = EagerStep(method, Updater(method, Skipping(method.parameters())))
    batch = batch_for(method, 8)
    for number in range(2):
        step(batch, scalars(method, number))
    before = copy.deepcopy(method.state_dict())
    spoilt = replace(batch, views=tuple(view * torch.nan for view in batch.views))
    assert step(spoilt, scalars(method, 2)).total.isnan()
    method.after_update(scalars(method, 2), torch.tensor(False))
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key
    step(batch, scalars(method, 2))  # negative control
    moved = {key.partition(".")[0] for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    expected = {key.partition(".")[0] for key in before}
    assert moved == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_no_value_is_read_back_from_the_device(name: str) -> None:
    """Fake tensors have no values: reading one raises."""
    method = built(CONFIGS[name])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in method.modules():
            for key, param in list(module._parameters.items()):
                if param is not None:
                    fake = nn.Parameter(mode.from_tensor(param.detach()), requires_grad=param.requires_grad)
                    module._parameters[key] = fake
            for key, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[key] = mode.from_tensor(buffer)
        views = tuple(mode.from_tensor(view) for view in batch_for(method, 8).inputs)
        terms = method.loss(method.embed(views), method.target(views))
        terms.total.backward()
        method.after_update(scalars(method, 0), torch.isfinite(terms.total))
        with pytest.raises(Exception, match="_local_scalar_dense"):  # negative control
            float(terms.total.detach())


@pytest.mark.parametrize("name", CONFIGS)
def test_under_autocast_the_loss_is_of_fp32_and_near_its_own(name: str) -> None:
    totals = {}
    for precision in ("off", "bf16"):
        method = built(CONFIGS[name])
        step = EagerStep(method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0)), precision=precision)
        totals[precision] = step(batch_for(method, 16), scalars(method, 0)).total
    assert totals["bf16"].dtype == torch.float32
    # Whitening magnifies the roundings of its input.
    torch.testing.assert_close(totals["bf16"], totals["off"], rtol=0.3 if name.startswith("wmse") else 0.03, atol=0.02)


@pytest.mark.parametrize("name", [name for name in METHOD_CONFIGS if name not in ("vicreg", "byol")])
def test_a_run_stopped_in_mid_epoch_goes_on_bit_for_bit(
    name: str, uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, _ = uninterrupted
    config = replace(tiny(data, epochs=2, eval_every=0), method=METHOD_CONFIGS[name])
    train(config, tmp_path / "whole")
    train(replace(config, run=replace(config.run, steps=4)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    rows = log(tmp_path / "run")
    assert rows == log(tmp_path / "whole")
    assert len({row["total"] for row in rows}) == 6


def trained(method: Any, rank: int, size: int) -> dict[str, Tensor]:
    """State after three steps on this process's rows of a batch of 16, in fp64, and what the steps told of the loss."""
    method.double()
    if size > 1:
        replace_norms(method, ranks=size, group=own_group())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.0, momentum=0.9)
    step = EagerStep(method, Updater(method, optimizer), world_size=size)
    batch = batch_for(method, 16, torch.float64)
    own = slice(rank * 16 // size, (rank + 1) * 16 // size)
    batch = replace(batch, views=tuple(view[own] for view in batch.views))
    if batch.places_BV5 is not None:
        batch = replace(batch, places_BV5=batch.places_BV5[own])
    told: dict[str, Tensor] = {}
    for number in range(3):
        terms = step(batch, scalars(method, number))
        # Deviations, and what is scaled by them, are of a process's own rows.
        own = [column.name for column in method.columns if not column.name.endswith(("_std", "_rank"))]
        shown = {"total": terms.total} | {name: terms.parts[name] for name in own}
        told |= {f"{name} of step {number}": value for name, value in shown.items()}
    return {key: value.detach().clone() for key, value in (method.state_dict() | told).items()}


def alone(config: MethodConfig) -> MethodConfig:
    """``config`` without what is each process's own by design: W-MSE's random cuts are of its rows."""
    return replace(config, w_iter=1) if config.name == "wmse" else config  # type: ignore[type-var]


def member(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: trained(built(alone(CONFIGS[name])), rank, 2) for name in AMONG_TWO}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Weights, targets, queues and statistics: the average of the processes' gradients is the whole batch's.

    So is the loss that each of them tells.

    One test for all, since the processes take longer to start than to train.
    """
    mp.spawn(member, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in AMONG_TWO:
        whole = trained(built(alone(CONFIGS[name])), 0, 1)
        start = built(alone(CONFIGS[name])).double().state_dict()
        assert any(not torch.equal(whole[key], value) for key, value in start.items()), name
        for found in halves:
            assert found[name].keys() == whole.keys()
            for key, value in whole.items():
                assert torch.allclose(found[name][key], value, rtol=1e-6, atol=1e-9), f"{name}: {key}"
