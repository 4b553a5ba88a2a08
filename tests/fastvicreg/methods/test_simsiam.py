"""SimSiam: the published loss's values, the parts that can be left out, and the predictor's own learning rate."""

from __future__ import annotations

import pytest
import torch
from methods import batch_of, encoder
from torch import Tensor, nn
from vectors import assert_vector

from fastvicreg.cli import main
from fastvicreg.config import OptimConfig
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.simsiam.method import SimSiam, mean_cosine
from fastvicreg.methods.two_views import Predictions
from fastvicreg.train.assemble import build_optimizer
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater


def simsiam(**settings: object) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(encoder(), SimSiamConfig(projector=(24, 24, 16), predictor_hidden=(8,), **settings))  # type: ignore[arg-type]


def test_the_loss_has_the_published_form_s_value_and_gradients() -> None:
    """facebookresearch/simsiam's main_simsiam.py, predictions taken as projections."""

    def loss(za: Tensor, zb: Tensor) -> Tensor:
        return simsiam().loss(Predictions(za, zb, za, zb), None).total

    assert_vector(loss, -0.963433325465, 0.025269574256, 0.023584208341)


def test_the_heads_are_the_published_ones() -> None:
    method = SimSiam(encoder(), SimSiamConfig())
    kinds = [type(layer) for layer in method.projector]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*hidden, *hidden, nn.Linear, nn.BatchNorm1d]
    assert all(layer.bias is None for layer in method.projector if isinstance(layer, nn.Linear))
    assert method.get_submodule("projector.7").weight is None
    assert [type(layer) for layer in method.get_submodule("predictor").children()] == [*hidden, nn.Linear]
    shapes = {name: tuple(p.shape) for name, p in method.predictor.named_parameters()}
    assert shapes == {"0.weight": (512, 2048), "1.weight": (512,), "1.bias": (512,), "3.weight": (2048, 512)} | {
        "3.bias": (2048,)
    }


def test_without_batch_norm_no_head_has_one_and_every_layer_has_a_bias() -> None:
    method = simsiam(batch_norm=False)
    heads = [*method.projector.modules(), *method.predictor.modules()]
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in heads)
    assert all(layer.bias is not None for layer in heads if isinstance(layer, nn.Linear))


def test_the_gradient_stops_unless_told_otherwise() -> None:
    za, zb = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()
    for stops in (True, False):
        target = zb.clone().requires_grad_()
        mean_cosine(za.clone().requires_grad_(), target, stop_gradient=stops).backward()
        assert (target.grad is None) == stops


def test_without_predictor_the_projection_is_the_prediction() -> None:
    method = simsiam(predictor=False)
    found = method.embed(batch_of(6).views)
    assert found.pa_BD is found.za_BD
    assert not [name for name, _ in method.named_parameters() if name.startswith("predictor")]


def test_a_momentum_copy_gives_the_targets_and_follows() -> None:
    method = simsiam(momentum_encoder=True, momentum=0.5)
    before = method.get_parameter("encoder.conv1.weight").detach().clone()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.0)
    EagerStep(method, Updater(method, optimizer))(batch_of(6), {"lr": 0.1, "momentum": 0.5})
    now = method.get_parameter("encoder.conv1.weight").detach()
    assert not torch.equal(now, before)
    copy = method.get_parameter("target_encoder.network.conv1.weight").detach()
    torch.testing.assert_close(copy, (before + now) / 2)


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam"])
@pytest.mark.parametrize("constant", [True, False])
def test_the_predictor_s_learning_rate_stays_at_its_peak(optimizer: str, constant: bool) -> None:
    method = simsiam(predictor_constant_lr=constant)
    config = OptimConfig(optimizer=optimizer, base_lr=0.05)  # type: ignore[arg-type]
    built = build_optimizer(config, method.param_groups(), batch_size=512)
    Updater(method, built).set_rates({"lr": 0.03})
    rates = {id(param): group["lr"] for group in built.param_groups for param in group["params"]}
    assert rates.keys() == {id(param) for param in method.parameters()}
    for name, param in method.named_parameters():
        stays = constant and name.startswith("predictor")
        assert rates[id(param)] == (0.05 * 2 if stays else 0.03), name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--momentum .9", "--momentum 0.9 needs a target network: give --momentum-encoder"),
        ("--momentum-encoder --no-stop-gradient", "no gradient reaches a momentum copy"),
        ("--projector 1", "--projector 1 has a layer below 2"),
        ("--regularize raw", "--regularize raw has nothing to act on"),
        ("--covariance nan", "--covariance nan cannot train"),
        ("--no-predictor --no-predictor-constant-lr", "--no-predictor-constant-lr needs a predictor"),
    ],
)
def test_contradictory_settings_are_one_line(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--method", "simsiam", *arguments.split()]) == 2
    assert says in capsys.readouterr().err
