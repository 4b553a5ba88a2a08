"""Training by labels does what the official evaluation does, several learning rates at once as one at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.encoders.resnet.network import resnet
from fastvicreg.errors import UserError
from fastvicreg.evaluate.heads import Heads, best_classes
from fastvicreg.evaluate.protocols.linear import Linear
from fastvicreg.evaluate.supervised import EpochReport, ImageBatches, Training, feature_batches, train_heads
from fastvicreg.pipelines import open_source


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(70) % 3
    centres = torch.randn(3, 6, generator=generator)
    return centres[labels] + torch.randn(70, 6, generator=generator), labels


def trained(training: Training, told: Callable[[EpochReport], None] = lambda _: None):
    x, labels = problem()
    batches = feature_batches(x, labels, training)
    return train_heads(nn.Identity(), batches, lambda: x, labels, training, features=6, classes=3, told=told)


@pytest.mark.parametrize("head", ["linear", "bn-linear"])
def test_heads_at_once_are_each_what_torch_trains_alone(head: str) -> None:
    training = Training(epochs=4, head_lrs=(0.02, 0.5), weight_decay=1e-3, batch_size=16, head=head)  # type: ignore[arg-type]
    x, labels = problem()
    found = trained(training).last
    for number, lr in enumerate(training.head_lrs):
        linear = nn.Linear(6, 3)
        with torch.no_grad():
            linear.weight.copy_(Heads(6, 3, 1).weights[0])
            linear.bias.zero_()
        alone = nn.Sequential(nn.BatchNorm1d(6), linear) if head == "bn-linear" else nn.Sequential(linear)
        optimizer = torch.optim.SGD(alone.parameters(), lr, momentum=0.9, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.epochs)
        batches = feature_batches(x, labels, training)
        for epoch in range(training.epochs):
            for x_BD, label_B in batches(epoch):
                optimizer.zero_grad()
                F.cross_entropy(alone(x_BD), label_B).backward()
                optimizer.step()
            schedule.step()
        expected = alone.eval()(x)
        torch.testing.assert_close(found.eval()(x)[:, number], expected, atol=1e-5, rtol=1e-4)


def test_weights_begin_as_the_official_code_draws_them() -> None:
    heads = Heads(2000, 50, 2, seed=3)
    assert float(heads.weights[0].detach().std()) == pytest.approx(0.01, rel=0.02)
    assert torch.equal(heads.weights[0], heads.weights[1])
    assert not heads.biases[0].any()
    assert not torch.equal(heads.weights[0], Heads(2000, 50, 1, seed=4).weights[0])


def test_rates_follow_a_cosine_an_epoch_or_milestones() -> None:
    cosine = Training(epochs=100, head_lrs=(0.02,))
    assert cosine.factor(0) == 1
    assert cosine.factor(50) == pytest.approx(0.5)
    assert cosine.factor(99) == pytest.approx((1 + math.cos(0.99 * math.pi)) / 2)
    steps = Training(epochs=28, head_lrs=(0.003,), milestones=(4, 8, 12))
    assert [round(steps.factor(epoch), 6) for epoch in (0, 3, 4, 8, 12, 27)] == [1, 1, 0.1, 0.01, 0.001, 0.001]


def test_fewer_epochs_than_published_begin_at_the_rate_that_was_given() -> None:
    assert Linear(preset="places205").training(0).milestones == (4, 8, 12)
    for epochs in (1, 5, 10):
        short = Linear(preset="places205", epochs=epochs, lr=(0.3,)).training(0)
        assert short.factor(0) == 1
    assert short.milestones == (2, 3, 5)


@pytest.mark.parametrize("head", ["linear", "bn-linear"])
def test_the_best_epoch_s_classifier_is_the_one_that_scored_so(head: str) -> None:
    reports: list[EpochReport] = []
    training = Training(epochs=6, head_lrs=(0.02, 3.0), batch_size=16, head=head)  # type: ignore[arg-type]
    found = trained(training, reports.append)
    x, labels = problem()
    for number, (epoch, one) in enumerate(found.best):
        accuracy = float((one.rank(x)[0, :, 0] == labels).float().mean() * 100)
        assert accuracy == reports[epoch - 1].accuracy_R[number] == max(r.accuracy_R[number] for r in reports)
    last = (found.last.rank(x)[..., 0] == labels).float().mean(1) * 100
    assert last.tolist() == reports[-1].accuracy_R


def test_a_rate_that_diverges_is_named() -> None:
    with pytest.raises(UserError, match=r"a learning rate of 1e\+38 diverges in epoch 1"):
        trained(Training(epochs=2, head_lrs=(0.1, 1e38), batch_size=16))


def test_classes_that_do_not_come_into_question_are_never_named() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 3.0], [0.0, 9.0, 1.0, 2.0]])
    assert best_classes(scores, torch.tensor([1, 3])).tolist() == [[3, 1], [1, 3]]
    assert best_classes(scores).tolist() == [[0, 2, 3, 1], [1, 3, 2, 0]]


def test_an_epoch_of_crops_has_every_image_once_and_other_crops_each_time(make_folder: Callable[..., Path]) -> None:
    source = open_source(make_folder(val=0, train=25))
    training = Training(epochs=2, head_lrs=(0.1,), batch_size=8)
    with ImageBatches(source, training, image_size=16, device="cpu", workers=1) as batches:
        first, again, second = (list(batches(epoch)) for epoch in (0, 0, 1))
    assert [len(labels) for _, labels in first] == [8, 8, 8, 1]
    expected = sorted(source.label(index) for index in range(25))
    for epoch in (first, second):
        assert sorted(torch.cat([labels for _, labels in epoch]).tolist()) == expected
    assert torch.equal(first[0][0], again[0][0])
    assert not torch.equal(first[0][0], second[0][0])


@pytest.mark.parametrize("lr", [0.0, 0.05])
def test_the_encoder_moves_where_it_is_trained_and_only_there(lr: float, make_folder: Callable[..., Path]) -> None:
    source = open_source(make_folder(val=0, train=17))
    torch.manual_seed(0)
    encoder = resnet("resnet18", width=16, stem="3x3s2")
    before = copy.deepcopy(encoder.state_dict())
    training = Training(epochs=1, head_lrs=(0.1,), body_lr=lr, batch_size=8)
    answers = torch.tensor([source.label(index) for index in range(17)])
    views = torch.randn(17, 3, 16, 16)
    with ImageBatches(source, training, image_size=16, device="cpu", workers=1) as batches:
        found = train_heads(
            encoder, batches, lambda: encoder(views).detach(), answers, training, features=128, classes=3
        )
    after = encoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert ({"conv1.weight", "bn1.running_mean", "layer4.1.conv2.weight"} <= moved) == bool(lr)
    assert bool(moved) == bool(lr)
    assert (found.best_body is not None) == bool(lr)
    assert not encoder.training
