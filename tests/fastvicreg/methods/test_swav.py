"""SwAV: the published loss's values, with small crops and a queue too, even assignments, prototypes of length 1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods import METHOD_CONFIGS, batch_of, built, encoder
from runs import log, tiny, train
from torch import Tensor
from vectors import assert_vector, embeddings

from fastvicreg.contracts import Horizon
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss.ranks import Ranks
from fastvicreg.methods.settings import check_frozen
from fastvicreg.methods.swav.config import SwAVConfig
from fastvicreg.methods.swav.method import SwAV, sinkhorn, swapped_prediction
from fastvicreg.presets import PRESETS, preset
from fastvicreg.train.assemble import build_optimizer
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater


def prototypes() -> Tensor:
    r, j = torch.arange(6.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    return F.normalize((0.3 * r + 1.1 * j).cos(), dim=1)


def swav(**settings: object) -> SwAV:
    torch.manual_seed(0)
    own: dict[str, Any] = {"projector": (24, 8), "prototypes": 12, "freeze_prototypes": 30} | settings
    return SwAV(encoder(), SwAVConfig(**own))


def test_the_loss_has_the_published_form_s_value_and_gradients() -> None:
    """facebookresearch/swav's main_swav.py: T .1, eps .05, 3 iterations, 6 prototypes."""
    expected = 1.432893166458, 0.268458673267, 0.264992229132
    assert_vector(lambda za, zb: swapped_prediction((za, zb), prototypes()), *expected)


def released(views: list[Tensor], weight: Tensor, queues: list[Tensor]) -> Tensor:
    """main_swav.py's loss and distributed_sinkhorn, written out: prototypes as rows, the queue before the batch."""
    scores = [F.normalize(z, dim=1) @ weight.T for z in views]
    total = torch.zeros((), dtype=weight.dtype)
    for crop in range(2):
        with torch.no_grad():
            out = torch.cat(([queues[crop] @ weight.T] if queues else []) + [scores[crop]])
            q = (out / 0.05).exp().T
            q /= q.sum()
            r, c = 1 / q.shape[0], 1 / q.shape[1]
            for _ in range(3):
                q *= (r / q.sum(1))[:, None]
                q *= (c / q.sum(0))[None]
            codes = (q / q.sum(0, keepdim=True)).T[-len(scores[crop]) :]
        part = torch.zeros((), dtype=weight.dtype)
        for other in range(len(views)):
            if other != crop:
                part = part - (codes * (scores[other] / 0.1).softmax(1).log()).sum(1).mean()
        total = total + part / (len(views) - 1)
    return total / 2


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("queued", [0, 12])
def test_any_number_of_crops_and_a_queue_are_the_released_code_s(count: int, queued: int) -> None:
    draw = torch.Generator().manual_seed(count)
    views = [torch.randn(6, 4, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(count)]
    rows = [F.normalize(torch.randn(12, 4, dtype=torch.float64, generator=draw), dim=1) for _ in range(2)]
    weight = prototypes().requires_grad_()
    own = swapped_prediction(views, weight, queues=rows, in_use=torch.tensor(queued == 12))
    wanted = released(views, weight, rows if queued else [])
    assert float(own.detach()) == pytest.approx(float(wanted.detach()), abs=1e-12)
    inputs = [*views, weight]
    for found, expected in zip(torch.autograd.grad(own, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    if queued:  # negative control: the queue makes a difference
        assert float(own.detach()) != pytest.approx(float(released(views, weight, []).detach()), abs=1e-4)


def test_the_queue_fills_from_its_epoch_and_is_used_once_it_is_full() -> None:
    method = swav(queue=12, queue_from_epoch=1)
    schedule = method.schedules(Horizon(40, 2, 6))["queue"]
    step = EagerStep(method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0)))
    first = method.queues[0].get_buffer("keys_KD").clone()
    filled = []
    for number in range(5):
        with torch.no_grad():
            za = F.normalize(method.projector(method.encoder(batch_of(6).views[0])), dim=1)
        step(batch_of(6), {"lr": 0.1, "queue": schedule(number)})
        filled.append(int(method.queued))
        queue = method.queues[0].get_buffer("keys_KD")
        if number == 1:
            assert torch.equal(queue, first)
        if number == 2:  # the first step of epoch 1
            torch.testing.assert_close(queue[:6], za, rtol=1e-4, atol=1e-5)
            assert torch.equal(queue[6:], first[6:])
    assert filled == [0, 0, 6, 12, 18]

    def total(method: SwAV) -> float:
        return float(method.loss(method.embed(batch_of(6).views), None).total.detach())

    before = total(method)
    with torch.no_grad():
        method.queued.fill_(11)
        unused = total(method)
        method.queues[0].get_buffer("keys_KD").normal_()
        assert total(method) == pytest.approx(unused)
        method.queued.fill_(12)
        assert total(method) != pytest.approx(unused)
    assert before != pytest.approx(unused)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"queue": 4}, "--queue 4 is below --batch-size 8"),
        ({"queue": 100}, "--queue 100 is larger than the 80 images of an epoch"),
        (
            {"queue": 16, "queue_from_epoch": 10},
            "--queue 16 from epoch 10 is full after 102 steps, and the run has 100",
        ),
    ],
)
def test_a_queue_that_the_run_cannot_fill_is_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        swav(**settings).schedules(Horizon(100, 10, 8))


@pytest.mark.parametrize("frozen", [100, 101])
@pytest.mark.parametrize("name", ["swav", "dino"])
def test_prototypes_that_never_learn_are_refused(name: str, frozen: int) -> None:
    method = built(replace(METHOD_CONFIGS[name], freeze_prototypes=frozen))  # type: ignore[type-var]
    line = f"--freeze-prototypes {frozen} leaves the prototypes alone in all of the run's 100 steps: give fewer"
    with pytest.raises(UserError, match=line):
        method.schedules(Horizon(100, 10, 8))
    assert method.schedules(Horizon(frozen + 1, 10, 8))


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_published_settings_train_their_prototypes(name: str) -> None:
    for preset_name in PRESETS:
        config: Any = preset(preset_name).config
        if config.method.name == name:
            per_epoch = (1_281_167 if "imagenet" in preset_name else 50_000) // config.run.batch_size
            check_frozen(config.method.freeze_prototypes, config.run.epochs * per_epoch)


def test_settings_of_no_queue_are_refused() -> None:
    for settings, says in (
        ({"queue": -1}, "--queue -1 is too small"),
        ({"queue_from_epoch": 3}, "--queue-from-epoch 3 starts no queue: give --queue"),
    ):
        with pytest.raises(UserError, match=says):
            SwAVConfig(**settings).check()  # pyright: ignore[reportArgumentType]


def test_what_a_refusal_of_a_queue_advises_is_taken() -> None:
    """Also where a preset has set the epoch: "--queue 0" alone would be refused in turn."""
    with pytest.raises(UserError, match=r"or --queue 0 --queue-from-epoch 15\.$"):
        swav(queue=16, queue_from_epoch=50).schedules(Horizon(100, 10, 8))
    with pytest.raises(UserError, match=r"or --queue 0 --queue-from-epoch 15\.$"):
        SwAVConfig(queue=0, queue_from_epoch=50).check()
    SwAVConfig(queue=0, queue_from_epoch=15).check()
    with pytest.raises(UserError, match=r"or --queue 0\.$"):
        swav(queue=16, queue_from_epoch=15).schedules(Horizon(100, 10, 8))


@pytest.mark.slow
def test_a_run_of_large_and_small_crops_resumes_bit_for_bit(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny(uninterrupted[0], epochs=2, eval_every=0)
    data = replace(config.data, image_size=32, recipe="multicrop", small_size=16)
    method = SwAVConfig(projector=(32, 16), prototypes=24, freeze_prototypes=2, queue=8, queue_from_epoch=1)
    config = replace(config, data=data, method=method, optim=replace(config.optim, base_lr=1.0))
    train(config, tmp_path / "whole")
    train(replace(config, run=replace(config.run, steps=4)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    rows = log(tmp_path / "run")
    assert rows == log(tmp_path / "whole")
    assert [row["queue"] for row in rows] == [0, 0, 0, 1, 1, 1]
    two = replace(config, data=replace(data, recipe="simclr", small_size=0))
    train(two, tmp_path / "two")
    assert log(tmp_path / "two")[0]["total"] != rows[0]["total"]


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


@pytest.mark.parametrize(
    ("name", "kept"), [("swav-imagenet-100ep", True), ("solo-cifar10-swav", True), ("dino-imagenet-100ep", False)]
)
def test_an_optimizer_of_the_presets_leaves_frozen_prototypes_alone_but_for_dino_s(name: str, kept: bool) -> None:
    """The released codes take them out of the update. LARS does, in SwAV's forms; AdamW's is a divergence of DINO's."""
    published = preset(name)
    method = swav(freeze_prototypes=3)
    optimizer = build_optimizer(published.config.optim, method.param_groups(), batch_size=256)
    step = EagerStep(method, Updater(method, optimizer))
    before = method.prototypes.weight.detach().clone()
    grads, lengths = [], []

    def look(*_: object) -> None:
        """After the update, before the prototypes go back to length 1."""
        grads.append(float(method.prototypes.weight.grad.norm()))  # type: ignore[union-attr, operator]
        lengths.append(float(method.prototypes.weight.detach().norm()))

    optimizer.register_step_post_hook(look)
    for _ in range(3):
        step(batch_of(6), {"lr": 0.1})
    assert grads == [0, 0, 0]
    torch.testing.assert_close(method.prototypes.weight.detach(), before)
    assert (lengths == pytest.approx([float(before.norm())] * 3, rel=1e-6)) == kept
    told = " ".join(published.told(published.config))
    assert ("frozen prototypes go through AdamW" in told) != kept
    state = {key: float(value.norm()) for key, value in optimizer.state[method.prototypes.weight].items()}
    assert state == ({"momentum_buffer": 0.0} if kept else {"step": 3.0, "exp_avg": 0.0, "exp_avg_sq": 0.0})
