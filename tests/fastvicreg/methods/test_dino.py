"""DINO: the released loss on any number of crops, its center, temperatures, frozen prototypes and either network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from methods import METHOD_CONFIGS, batch_of, encoder
from runs import log, tiny, train
from torch import Tensor, nn

import fastvicreg
from fastvicreg.cli import main
from fastvicreg.contracts import Horizon
from fastvicreg.errors import UserError
from fastvicreg.methods.dino.config import DINOConfig
from fastvicreg.methods.dino.method import DINO, Prototypes, distillation
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater


def dino(**settings: object) -> DINO:
    torch.manual_seed(0)
    own = {"projector": (24, 8), "prototypes": 12, "momentum": 0.9, "freeze_prototypes": 0} | settings
    return DINO(encoder(), DINOConfig(**own))  # type: ignore[arg-type]


def step(method: DINO, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.0)
    EagerStep(method, Updater(method, optimizer))(batch_of(6), {"lr": lr, "momentum": 0.9})


def released(students: list[Tensor], teachers: list[Tensor], center: Tensor, temperature: float) -> Tensor:
    """main_dino.py's DINOLoss, written out on the last layers' outputs."""
    total, count = torch.zeros((), dtype=center.dtype), 0
    for place, teacher in enumerate(teachers):
        q = ((teacher - center) / temperature).softmax(-1).detach()
        for other, student in enumerate(students):
            if other != place:
                total = total + (-q * (student / 0.1).log_softmax(-1)).sum(-1).mean()
                count += 1
    return total / count


def layer(weight: Tensor) -> nn.Module:
    """vision_transformer.py's last layer: weight_norm with a length of 1."""
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(weight.shape[1], len(weight), bias=False).double())
    with torch.no_grad():
        linear.parametrizations.weight.original0.fill_(1)  # type: ignore[union-attr, operator]
        linear.parametrizations.weight.original1.copy_(weight)  # type: ignore[union-attr, operator]
    return linear


@pytest.mark.parametrize("count", [2, 5])
def test_value_and_gradients_are_the_released_loss_s(count: int) -> None:
    draw = torch.Generator().manual_seed(count)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    views = [noise(6, 4).requires_grad_() for _ in range(count)]
    targets, center = [noise(6, 4) for _ in range(2)], noise(9)
    own, last = Prototypes(4, 9).double(), layer(noise(9, 4))
    with torch.no_grad():
        own.weight.copy_(last.parametrizations.weight.original1)  # type: ignore[union-attr, operator, index]
    teachers = [((own(t) - center) / 0.04).softmax(1).detach() for t in targets]
    found = distillation([own(z) for z in views], teachers, 0.1)
    wanted = released(
        [last(F.normalize(z, dim=-1)) for z in views], [last(F.normalize(t, dim=-1)) for t in targets], center, 0.04
    )
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=1e-12)
    weight = last.parametrizations.weight.original1  # type: ignore[union-attr, index]
    for one, other in zip(
        torch.autograd.grad(found, [*views, own.weight]),
        torch.autograd.grad(wanted, [*views, weight]),  # type: ignore[list-item]
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_method_s_loss_is_that_of_its_networks_with_its_center() -> None:
    method = dino().double()
    views = tuple(view.double() for view in batch_of(6).views)
    with torch.no_grad():
        method.center_P.normal_()
    center = method.center_P.clone()
    embeddings, targets = method.embed((*views, views[0] + 0.3)), method.target((*views, views[0] + 0.3))
    assert (len(embeddings), len(targets)) == (3, 2)
    terms = method.loss(embeddings, targets)
    weight = F.normalize(method.prototypes.weight, dim=1)
    outputs = [[F.normalize(z, dim=1) @ weight.T for z in each] for each in (embeddings, targets)]
    torch.testing.assert_close(terms.total, released(outputs[0], outputs[1], center, 0.04))
    assert 0 <= float(terms.parts["teacher_entropy"]) <= float(terms.parts["entropy_uniform"]) == math.log(12)
    method.after_update({"momentum": 0.9}, True)
    torch.testing.assert_close(method.center_P, 0.9 * center + 0.1 * torch.cat(outputs[1]).mean(0).detach())


def test_the_teacher_s_temperature_goes_to_its_value_with_every_update() -> None:
    method = dino(teacher_temperature=0.07, teacher_temperature_start=0.04, teacher_warmup=3)
    seen = []
    for _ in range(5):
        seen.append(float(method._teacher_temperature()))
        step(method)
    assert seen == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07])


def test_a_warm_up_of_the_temperature_that_outlasts_the_run_is_refused() -> None:
    # As main_dino.py, whose schedule then has a negative length.
    method = dino(teacher_temperature=0.07, teacher_temperature_start=0.04, teacher_warmup=6)
    method.check_length(Horizon(6, 3, 8))
    with pytest.raises(UserError, match="--teacher-warmup 6 is longer than the run of 5 steps"):
        method.check_length(Horizon(5, 5, 8))


def test_prototypes_stay_until_they_thaw_and_the_target_follows() -> None:
    method = dino(freeze_prototypes=2)
    start = method.prototypes.weight.detach().clone()
    for number in range(3):
        step(method)
        assert torch.equal(method.prototypes.weight, start) == (number < 2)
    target = method.get_parameter("target_prototypes.network.weight")
    torch.testing.assert_close(target, 0.9 * start + 0.1 * method.prototypes.weight)


@pytest.mark.parametrize("finite", [False, torch.tensor(False)])
def test_a_skipped_step_leaves_center_count_and_target(finite: bool | Tensor) -> None:
    method = dino()
    views = batch_of(6).views
    method.loss(method.embed(views), method.target(views))
    with torch.no_grad():
        method.prototypes.weight.mul_(2)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.after_update({"momentum": 0.5}, finite)
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key
    method.after_update({"momentum": 0.5}, torch.tensor(True))  # negative control
    assert not torch.equal(method.center_P, before["center_P"])


def test_the_momentum_rises_to_1() -> None:
    schedule = dino(momentum=0.996).schedules(Horizon(100, 10, 8))["momentum"]
    assert [schedule(0), schedule(50), schedule(100)] == pytest.approx([0.996, 0.998, 1.0])


def test_the_recipe_is_the_released_one() -> None:
    first, second, *small = named_recipe("dino").views
    assert [(v.crop_scale, v.blur_p, v.solarize_p, v.size) for v in (first, second)] == [
        ((0.4, 1.0), 1.0, 0.0, 0),
        ((0.4, 1.0), 0.1, 0.2, 0),
    ]
    assert [(v.crop_scale, v.blur_p, v.solarize_p, v.size) for v in small] == [((0.05, 0.4), 0.5, 0.0, 96)] * 8
    for v in (first, second, *small):
        assert (v.brightness, v.contrast, v.saturation, v.hue, v.jitter_p, v.grayscale_p) == (
            0.4,
            0.4,
            0.2,
            0.1,
            0.8,
            0.2,
        )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"teacher_temperature": 0.01}, "--teacher-temperature 0.01 is too sharp"),
        ({"teacher_temperature": 0.07}, "differ without a way between: give --teacher-warmup"),
        ({"center_momentum": 1.5}, "--center-momentum 1.5 is no share"),
        ({"momentum": -1.0}, "--momentum -1.0 is no share"),
        ({"prototypes": 1}, "--prototypes 1 leaves nothing"),
        ({"teacher_warmup": -1}, "--teacher-warmup -1 is too small"),
        ({"temperature": 0.0}, "--temperature 0.0 cannot train"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DINOConfig(**settings).check()  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_run_on_large_and_small_crops_resumes_and_either_network_is_evaluated(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tiny(uninterrupted[0], epochs=2, eval_every=0)
    config = replace(
        config,
        data=replace(config.data, image_size=32, recipe="dino", small_size=16),
        method=METHOD_CONFIGS["dino"],
        optim=replace(config.optim, base_lr=1.0),
    )
    train(config, tmp_path / "whole")
    train(replace(config, run=replace(config.run, steps=4)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    x = torch.randn(2, 3, 16, 16)
    own, target = (fastvicreg.load_encoder(tmp_path / "run", encoder=name)(x) for name in ("a", "target"))
    assert not torch.equal(own, target)
    for name in ("a", "target"):
        assert main(["eval", "knn", str(tmp_path / "run"), "--device", "cpu", "--encoder", name, "--no-cache"]) == 0
    shown = ["inspect", str(tmp_path / "run"), "--encoder", "target", "--device", "cpu", "--views", "2"]
    assert main(shown) == 0
    assert [page.name for page in (tmp_path / "run").glob("*.html")] == ["inspect-target.html"]
