"""Figures of a ranking against values worked out by hand or by a library."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

from fastvicreg.evaluate.protocols.linear import Linear
from fastvicreg.evaluate.protocols.semi import Semi
from fastvicreg.evaluate.published import published
from fastvicreg.evaluate.ranking import average_precision
from fastvicreg.evaluate.scores import accuracies, by_class, confusion, wilson
from fastvicreg.presets import preset


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (1, 10), (10, 10), (732, 1000), (1, 1)])
def test_the_interval_is_wilsons(correct: int, total: int) -> None:
    expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert wilson(correct, total) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_accuracy_within_one_and_five() -> None:
    top = torch.tensor([[0, 1, 2, 3, 4], [5, 0, 1, 2, 3], [1, 2, 3, 4, 5], [4, 3, 2, 1, 0]])
    found = accuracies(top, torch.tensor([0, 3, 0, 0]), classes=6)
    assert (found["accuracy"], found["top5"]) == (25, 75)
    assert found["accuracy_low"] < 25 < found["accuracy_high"]
    assert "top5" not in accuracies(top, torch.tensor([0, 3, 0, 0]), classes=5)


def test_classes_are_counted_by_what_they_are_taken_for() -> None:
    count = confusion(torch.tensor([0, 1, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 2]), 4)
    assert count.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    first, second, third = by_class(count, ("a", "b", "c", "d"))  # nobody asked for d
    assert (first["class"], first["images"], first["taken_for"]) == ("a", 3, "b")
    assert first["accuracy"] == pytest.approx(100 / 3)
    assert first["taken_for_share"] == pytest.approx(200 / 3)
    assert (second["taken_for"], third["accuracy"]) == ("", 100)


def test_average_precision_by_hand() -> None:
    relevant = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    assert average_precision(relevant).tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 4, 0])


LINEAR = Linear().described


def test_published_figures_stand_beside_runs_of_their_settings_alone() -> None:
    config = preset("imagenet-1000ep").config
    (figure,) = published(config, "linear", LINEAR, 1000)
    assert (figure.value, figure.top5) == (73.2, 91.1)
    assert "Table 1" in figure.told()
    assert [f.value for f in published(config, "knn", {"k": (10, 20, 200)}, 1000)] == [64.5, 62.8]
    assert [f.value for f in published(config, "semi", Semi(percent=10).described, 1000)] == [69.5]
    assert [f.value for f in published(config, "linear", Linear(preset="inat18").described, 8142)] == [47.0]
    assert [f.value for f in published(config, "semi", Semi(split="x/1percent.txt").described, 1000)] == [54.8]
    assert not published(config, "semi", Semi(split="mine.txt").described, 1000)
    for changed in ({"total_steps": 1000}, {"init": "resnet50.pth"}):  # another run than the published one
        assert not published(replace(config, run=replace(config.run, **changed)), "linear", LINEAR, 1000)
    assert not published(config, "linear", LINEAR, 100)
    assert not published(config, "linear", Linear(epochs=1).described, 1000)
    assert not published(config, "semi", Semi(percent=10, epochs=2).described, 1000)
    assert not published(config, "linear", Linear(frozen_features=True).described, 1000)
    elsewhere = replace(config, data=replace(config.data, data="elsewhere"), run=replace(config.run, seed=3))
    assert published(elsewhere, "linear", LINEAR, 1000)
    for changed in (
        replace(config, run=replace(config.run, epochs=300)),
        replace(config, data=replace(config.data, recipe="paper")),
        replace(config, optim=replace(config.optim, base_lr=0.4)),
        preset("cifar10").config,
    ):
        assert not published(changed, "linear", LINEAR, 1000)
