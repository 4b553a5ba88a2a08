"""LARS against a second writing of its rule in numpy, its state, and the learning rate against hand values."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastvicreg.contracts import UserError
from fastvicreg.optim import LARS, cosine_schedule, lars_groups


class Network(nn.Module):
    """Matrices, vectors, batch norm, and a skip connection whose weight starts at norm 0."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(8, 4, bias=False)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.skip = nn.Linear(6, 4)
        nn.init.zeros_(self.skip.weight)
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) + self.skip(x)


def backward(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    batch = torch.randn(10, 6, generator=generator, dtype=torch.float64).to(next(model.parameters()).dtype)
    model.zero_grad()
    loss = (model(batch) - batch[:, :4]).square().mean()
    loss.backward()
    return loss.detach()


class WrittenOut:
    """You et al.'s layer-wise rate inside SGD with momentum, in numpy, with main_vicreg.py's exclusions."""

    def __init__(self, model: nn.Module, weight_decay: float, momentum: float, eta: float) -> None:
        self.weights = {name: param.detach().numpy().copy() for name, param in model.named_parameters()}
        self.velocity = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.weight_decay, self.momentum, self.eta = weight_decay, momentum, eta

    def step(self, gradients: dict[str, np.ndarray], lr: float) -> None:
        for name, gradient in gradients.items():
            weight, local_lr = self.weights[name], 1.0
            if weight.ndim > 1:
                gradient = gradient + self.weight_decay * weight
                weight_norm, gradient_norm = np.linalg.norm(weight), np.linalg.norm(gradient)
                if weight_norm > 0 and gradient_norm > 0:
                    local_lr = self.eta * weight_norm / gradient_norm
            self.velocity[name] = self.momentum * self.velocity[name] + local_lr * gradient
            self.weights[name] = weight - lr * self.velocity[name]


@pytest.mark.parametrize("impl", ["auto", "reference", "foreach"])
def test_twenty_steps_of_the_rule_written_out(impl: str):
    model = Network()
    written = WrittenOut(model, weight_decay=0.01, momentum=0.9, eta=0.02)
    optimizer = LARS(model.parameters(), lr=0.0, weight_decay=0.01, eta=0.02, impl=impl)
    for step in range(20):
        backward(model, step)
        lr = 0.5 * (step + 1) / 20
        optimizer.param_groups[0]["lr"] = lr
        written.step({n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}, lr)
        optimizer.step()
        for name, param in model.named_parameters():
            np.testing.assert_allclose(param.detach().numpy(), written.weights[name], rtol=1e-11, atol=1e-14)


def test_parameters_without_a_gradient_are_left_alone():
    model = Network()
    optimizer = LARS(model.parameters(), lr=0.1, weight_decay=0.1)
    backward(model, 0)
    model.head.weight.grad = None
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer.step()
    assert torch.equal(model.head.weight, before["head.weight"])
    assert model.head.weight not in optimizer.state
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert moved >= {"body.0.weight", "body.1.weight", "body.1.bias", "skip.weight", "skip.bias"}
    model.zero_grad()
    optimizer.step()  # no gradient at all


def test_groups_keep_their_own_hyper_parameters():
    frozen, moving = (nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    optimizer = LARS([{"params": [frozen], "lr": 0.0}, {"params": [moving], "eta": 1.0}], lr=0.5)
    frozen.grad, moving.grad = torch.ones(3, 3), torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(3, 3))
    torch.testing.assert_close(moving.detach(), torch.full((3, 3), 0.5))  # q = 1 x 3 / 3


@pytest.mark.parametrize("carry", ["state_dict", "pickle", "deepcopy"])
def test_a_run_continues_bit_for_bit_from_its_state(carry: str, tmp_path):
    model = Network(torch.float32)
    optimizer = LARS(model.parameters(), lr=0.3, weight_decay=1e-4, impl="reference")
    for step in range(5):
        backward(model, step)
        optimizer.step()

    if carry == "state_dict":
        torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
        weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
        again = Network(torch.float32)
        again.load_state_dict(weights)
        resumed = LARS(again.parameters(), lr=9.0, impl="foreach")
        resumed.load_state_dict(state)
        assert resumed.impl == "foreach"
    elif carry == "pickle":
        again, resumed = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        again, resumed = copy.deepcopy((model, optimizer))

    for step in range(5, 10):
        for net, each in ((model, optimizer), (again, resumed)):
            backward(net, step)
            each.step()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))
    assert resumed.param_groups[0]["lr"] == 0.3
    for param in again.parameters():
        assert set(resumed.state[param]) == {"momentum_buffer"}


def test_a_closure_is_evaluated_with_gradients():
    model = Network()
    optimizer = LARS(model.parameters(), lr=0.1)
    before = model.head.weight.detach().clone()
    expected = backward(model, 3)
    model.zero_grad()
    assert optimizer.step(lambda: backward(model, 3)) == expected
    assert not torch.equal(model.head.weight, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("lr", -0.1), ("lr", math.nan), ("lr", math.inf), ("weight_decay", -1e-6), ("eta", -1.0)),
        *(("momentum", 1.0), ("momentum", -0.1), ("momentum", math.nan)),
    ],
)
def test_hyper_parameters_out_of_range_are_named(name: str, value: float):
    options: dict[str, Any] = {"lr": 0.1, name: value}
    with pytest.raises(ValueError, match=f"LARS: {name} must .*{value}"):
        LARS([nn.Parameter(torch.ones(2))], **options)


def test_an_unknown_implementation_is_refused_at_once():
    with pytest.raises(UserError, match="'refrence'; did you mean 'reference'"):
        LARS([nn.Parameter(torch.ones(2))], lr=0.1, impl="refrence")


RUN = {"steps": 110, "warmup_steps": 10, "base_lr": 0.3, "batch_size": 2048}


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.0),
        (1, 0.24),
        (9, 2.16),
        (10, 2.4),  # 0.3 x 2048 / 256
        (35, 2.4 * (0.5 + 0.25 * math.sqrt(2)) + 0.0024 * (0.5 - 0.25 * math.sqrt(2))),
        (60, 1.2012),
        (110, 0.0024),
    ],
)
def test_learning_rate_by_hand(step: int, lr: float):
    assert cosine_schedule(step, **RUN) == pytest.approx(lr, rel=1e-12)


def test_learning_rate_without_warm_up_and_with_another_end():
    run = {"steps": 4, "warmup_steps": 0, "base_lr": 1.0, "batch_size": 128, "final": 0.2}
    assert [cosine_schedule(step, **run) for step in (0, 2, 4)] == pytest.approx([0.5, 0.3, 0.1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "step -1 lies outside a run of 110 steps"),
        ({"step": 111}, "step 111 lies outside"),
        ({"warmup_steps": 110}, "warm-up of 110 steps does not fit a run of 110"),
        ({"warmup_steps": -1}, "warm-up of -1 steps"),
    ],
)
def test_a_step_outside_the_run_is_refused(changes: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        cosine_schedule(**{"step": 0, **RUN, **changes})


class OtherForm(WrittenOut):
    """solo-learn's, SimCLR's and apex's LARS, each as its own code computes it."""

    def __init__(self, form: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.form = form

    def step(self, gradients: dict[str, np.ndarray], lr: float) -> None:
        for name, gradient in gradients.items():
            weight = self.weights[name]
            if self.form == "tensorflow":
                scaled_lr = lr
                if weight.ndim != 1:
                    gradient = gradient + self.weight_decay * weight
                    norms = np.linalg.norm(weight), np.linalg.norm(gradient)
                    scaled_lr = lr * (self.eta * norms[0] / norms[1] if min(norms) > 0 else 1.0)
                self.velocity[name] = self.momentum * self.velocity[name] + scaled_lr * gradient
                self.weights[name] = weight - self.velocity[name]
                continue
            if weight.ndim != 1 or self.form == "larc":
                norms = np.linalg.norm(weight), np.linalg.norm(gradient)
                if min(norms) > 0:
                    local_lr = self.eta * norms[0] / (norms[1] + norms[0] * self.weight_decay + 1e-8)
                    if self.form == "clipped":
                        local_lr = min(local_lr / lr, 1)
                    gradient = (gradient + self.weight_decay * weight) * local_lr
            self.velocity[name] = self.momentum * self.velocity[name] + gradient
            self.weights[name] = weight - lr * self.velocity[name]


@pytest.mark.parametrize("form", ["clipped", "tensorflow", "larc"])
@pytest.mark.parametrize("eta", [1e-4, 0.02, 1.0])  # below and above the clip
def test_each_form_is_its_own_code_s_rule(form: str, eta: float):
    model = Network()
    options: dict[str, Any] = {"weight_decay": 0.01, "momentum": 0.9, "eta": eta}
    written = OtherForm(form, model, **options)
    groups = lars_groups(
        [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim <= 1], form=form
    )
    optimizer = LARS(groups, lr=0.0, form=form, **options)
    for step in range(12):
        backward(model, step)
        lr = 1e-3 * (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        written.step({n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}, lr)
        optimizer.step()
        for name, param in model.named_parameters():
            np.testing.assert_allclose(param.detach().numpy(), written.weights[name], rtol=1e-9, atol=1e-13)


def test_the_forms_differ_from_each_other():
    ends = {}
    for form in ("official", "clipped", "tensorflow", "larc"):
        model = Network()
        optimizer = LARS(model.parameters(), lr=0.0, weight_decay=0.01, eta=0.5, form=form)
        for step in range(4):
            backward(model, step)
            optimizer.param_groups[0]["lr"] = 0.1 * (step + 1)
            optimizer.step()
        ends[form] = torch.cat([param.detach().flatten() for param in model.parameters()])
    for first, second in itertools.combinations(ends, 2):
        assert not torch.allclose(ends[first], ends[second], rtol=1e-6), (first, second)


def test_a_learning_rate_of_0_is_no_division_by_0():
    model = Network()
    before = model.head.weight.detach().clone()
    optimizer = LARS(model.parameters(), lr=0.0, form="clipped")
    backward(model, 0)
    optimizer.step()
    assert torch.equal(model.head.weight, before)
    assert torch.isfinite(optimizer.state[model.head.weight]["momentum_buffer"]).all()


def test_what_a_form_cannot_have_is_refused():
    params = [nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(UserError, match="unknown LARS form 'clip'; did you mean 'clipped'"):
        LARS(params, lr=0.1, form="clip")
    with pytest.raises(UserError, match="lars kernel 'cuda' computes the official form alone, not 'larc'"):
        LARS(params, lr=0.1, form="larc", impl="cuda")


def test_a_form_is_carried_by_pickle():
    optimizer = LARS([nn.Parameter(torch.ones(2, 2))], lr=0.1, form="larc")
    assert pickle.loads(pickle.dumps(optimizer)).form == "larc"
