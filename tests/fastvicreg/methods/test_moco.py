"""MoCo v2: the published loss's values, and a queue that holds the last keys and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from methods import batch_of, encoder
from runs import tiny, train
from torch import Tensor
from vectors import assert_vector

from fastvicreg.contracts import Horizon
from fastvicreg.errors import UserError
from fastvicreg.methods.moco.config import MoCoConfig
from fastvicreg.methods.moco.method import MoCo, info_nce
from fastvicreg.methods.queue import KeyQueue
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater


def moco(**settings: object) -> MoCo:
    torch.manual_seed(0)
    values = {"projector": (24, 8), "queue": 14, "momentum": 0.9, "momentum_end": 1.0} | settings
    return MoCo(encoder(), MoCoConfig(**values))  # type: ignore[arg-type]


def step(method: MoCo, lr: float = 0.1) -> None:
    EagerStep(method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0)))(
        batch_of(6), {"lr": lr, "momentum": 0.9}
    )


def test_the_loss_has_the_published_form_s_value_and_gradients() -> None:
    """facebookresearch/moco's builder.py: T .2, a queue of 8 keys; keys carry no gradient."""
    k, j = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    queue = F.normalize((0.4 * j + 0.9 * k + 0.2 * j * k).cos(), dim=1)

    def loss(za: Tensor, zb: Tensor) -> Tensor:
        return info_nce(za, F.normalize(zb.detach(), dim=1), queue, 0.2)

    assert_vector(loss, 0.454020373844, 0.130172499516, 0.0)


def test_the_queue_holds_the_newest_keys_in_turn() -> None:
    queue = KeyQueue(5, 2)
    for number in range(4):
        queue.push(torch.tensor([[number, 0.0], [number, 1.0]]), True)
    assert int(queue.oldest) == 8 % 5
    assert queue.keys_KD.tolist() == [[2, 1], [3, 0], [3, 1], [1, 1], [2, 0]]


@pytest.mark.parametrize("finite", [False, torch.tensor(False)])
def test_a_skipped_step_leaves_the_queue_bit_for_bit(finite: bool | Tensor) -> None:
    queue = KeyQueue(5, 2)
    queue.push(torch.ones(2, 2), True)
    kept, oldest = queue.keys_KD.clone(), int(queue.oldest)
    queue.push(torch.full((2, 2), torch.nan), finite)
    assert torch.equal(queue.keys_KD, kept)
    assert int(queue.oldest) == oldest
    queue.push(torch.zeros(2, 2), torch.tensor(True))  # negative control
    assert not torch.equal(queue.keys_KD, kept)


@pytest.mark.parametrize("symmetric", [False, True])
def test_keys_of_a_step_enter_after_its_logits(symmetric: bool) -> None:
    method = moco(symmetric=symmetric)
    before = [queue.get_buffer("keys_KD").clone() for queue in method.queues]
    views = batch_of(6).views
    targets = method.target(views)
    method.loss(method.embed(views), targets)
    for queue, kept in zip(method.queues, before, strict=True):
        assert torch.equal(queue.get_buffer("keys_KD"), kept)
    method.after_update({"momentum": 0.9}, True)
    assert len(method.queues) == 1 + symmetric
    for queue, key_BD in zip(method.queues, targets, strict=True):
        torch.testing.assert_close(queue.get_buffer("keys_KD")[:6], F.normalize(key_BD, dim=1))


def test_the_key_of_a_query_is_of_the_other_view() -> None:
    method = moco(symmetric=True)
    a, b = batch_of(6).views
    first, second = method.target((a, b))
    only_b, only_a = method.target((b, b))[0], method.target((a, a))[0]
    torch.testing.assert_close(first, only_b)
    torch.testing.assert_close(second, only_a)


def test_the_key_encoder_follows_after_the_update() -> None:
    method = moco()
    before = method.get_parameter("encoder.conv1.weight").detach().clone()
    step(method)
    now = method.get_parameter("encoder.conv1.weight").detach()
    torch.testing.assert_close(
        method.get_parameter("target_encoder.network.conv1.weight").detach(), 0.9 * before + 0.1 * now
    )


def test_the_momentum_goes_from_start_to_end() -> None:
    horizon = Horizon(100, 10, 8)
    schedule = moco().schedules(horizon)["momentum"]
    assert [schedule(0), schedule(50), schedule(100)] == pytest.approx([0.9, 0.95, 1.0])
    constant = moco(momentum=0.999, momentum_end=0.999).schedules(horizon)["momentum"]
    assert {constant(0), constant(33), constant(100)} == {0.999}


def test_a_run_refuses_a_queue_above_its_data_before_it_begins(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, _ = uninterrupted
    config = replace(tiny(data), method=MoCoConfig(projector=(24, 8), queue=1000))
    with pytest.raises(UserError, match="--queue 1000 is larger than the 24 images of an epoch"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("queue", "says"),
    [(7, "--queue 7 is below --batch-size 8"), (81, "--queue 81 is larger than the 80 images .* give --queue 40")],
)
def test_a_queue_below_the_batch_or_above_the_data_is_refused(queue: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        moco(queue=queue).schedules(Horizon(100, 10, 8))
