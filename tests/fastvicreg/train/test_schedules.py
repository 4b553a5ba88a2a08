"""The weight decay that moves over a run: its values, and that every optimizer takes them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusing import assert_refused
from runs import log, require_same_when_resumed, tiny
from stepping import vicreg
from torch import nn

from fastvicreg.config import OptimConfig
from fastvicreg.contracts import Horizon, by_dimension
from fastvicreg.train.assemble import build_optimizer
from fastvicreg.train.schedules import schedules_of
from fastvicreg.train.updater import Updater

HORIZON = Horizon(steps=200, steps_per_epoch=20, batch_size=256)
FORMS: list[dict[str, Any]] = [
    *({"optimizer": "lars", "lars_form": form} for form in ("official", "clipped", "tensorflow", "larc")),
    *({"optimizer": name, "decay_1d": decay_1d} for name in ("sgd", "adam", "adamw") for decay_1d in (False, True)),
]


def main_dino(base: float, final: float, steps: int) -> list[float]:
    """facebookresearch/dino's cosine schedule without warm-up, written out."""
    return [final + 0.5 * (base - final) * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]


def test_a_warm_up_that_never_ends_is_told_of_in_parts_of_an_epoch() -> None:
    _, note = schedules_of(vicreg(), OptimConfig(warmup_epochs=10), Horizon(40, 100, 256))
    assert "a warm-up of 10 epochs never ends in 0.4: shortened to 10 % of the steps (4)" in note


def test_weight_decay_goes_to_its_end_by_half_a_cosine_and_only_where_asked() -> None:
    optim = OptimConfig(weight_decay=0.04, weight_decay_end=0.4)
    schedules, _ = schedules_of(vicreg(), optim, HORIZON)
    assert list(schedules) == ["lr", "weight_decay"]
    found = [schedules["weight_decay"](step) for step in range(HORIZON.steps)]
    assert found == pytest.approx(main_dino(0.04, 0.4, HORIZON.steps), rel=1e-14)
    assert found[0] == pytest.approx(0.04)
    assert found[100] == pytest.approx(0.22)
    assert schedules["weight_decay"](HORIZON.steps) == pytest.approx(0.4)
    falling, _ = schedules_of(vicreg(), OptimConfig(weight_decay=0.04, weight_decay_end=0.0), HORIZON)
    assert falling["weight_decay"](50) == pytest.approx(0.04 * (1 + math.sqrt(0.5)) / 2)
    assert list(schedules_of(vicreg(), OptimConfig(), HORIZON)[0]) == ["lr"]


def moved(config: OptimConfig, scalars: dict[str, float]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after one step of the optimizer of ``config`` at ``scalars``, and its groups' decays."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    for param in network.parameters():
        nn.init.normal_(param)  # none at 0, which no decay moves
    optimizer = build_optimizer(config, by_dimension(network), batch_size=256)
    updater = Updater(network, optimizer)
    updater.set_rates(scalars)
    updater.begin()
    total = network(torch.randn(8, 6, dtype=torch.float64)).square().mean()
    updater.backward(total)
    updater(total.detach())
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    return {name: param.detach() for name, param in network.named_parameters()}, decays


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_a_step_at_a_moved_decay_is_that_of_an_optimizer_made_with_it(form: dict[str, Any]) -> None:
    config = OptimConfig(weight_decay=0.04, base_lr=0.5, eta=0.1, **form)
    found, decays = moved(config, {"lr": 0.5, "weight_decay": 0.3})
    wanted, others = moved(replace(config, weight_decay=0.3), {"lr": 0.5})
    assert decays == others
    kept, _ = moved(config, {"lr": 0.5})
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name
        decayed = weight.ndim > 1 or form.get("decay_1d") or form.get("lars_form") == "larc"
        # The gradient of a bias before a batch norm is 0, and larc leaves such a parameter alone.
        if name != "0.bias":
            assert torch.equal(kept[name], weight) != bool(decayed), name


def test_it_is_in_every_row_of_the_log_and_a_resumed_run_goes_on_with_it(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tiny(uninterrupted[0])
    config = replace(config, optim=replace(config.optim, weight_decay=1e-3, weight_decay_end=0.1))
    run = require_same_when_resumed(config, tmp_path)
    rows = [row for row in log(run) if "total" in row]
    assert [row["weight_decay"] for row in rows] == pytest.approx(main_dino(1e-3, 0.1, 9), rel=1e-12)
    assert "weight_decay 0.0" in (tmp_path / "display.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--weight-decay-end", "-1"), "--weight-decay-end -1.0 cannot train: give a finite value, 0 or more"),
        (("--weight-decay-end", "nan"), "--weight-decay-end nan cannot train"),
        (("--weight-decay-end", "inf"), "--weight-decay-end inf cannot train"),
        (("--weight-decay", "0", "--weight-decay-end", ".4"), "--weight-decay-end 0.4 needs a decay to start from"),
        (("--step", "graphed", "--weight-decay-end", ".4"), "--step graphed records the weight decay as it is"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(arguments, line, tmp_path / "run", capsys)
