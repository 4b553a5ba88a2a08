"""A step that is not finite leaves nothing behind: no weight, no momentum, no running statistic, on either path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from skipping import Skipping
from torch import Tensor, nn

from fastvicreg.config import OptimConfig
from fastvicreg.contracts import by_dimension
from fastvicreg.train.assemble import build_optimizer
from fastvicreg.train.updater import NON_FINITE, Updater, UpdaterState

OVERFLOW = 1e6
"""Beyond what fp16 holds."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8))


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(4, 3, 8, 8, generator=generator)


def step(net: nn.Module, updater: Updater, batch_BCHW: Tensor, precision: str) -> bool:
    """Whether the update took place."""
    updater.set_rates({"lr": 1e-3})
    updater.begin()
    with torch.autocast("cpu", torch.float16, enabled=precision == "fp16"):
        total = net(batch_BCHW).float().square().mean()
    updater.backward(total)
    return bool(updater(total.detach()).finite)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(("precision", "optimizer"), [("fp16", torch.optim.SGD), ("off", Skipping), ("fp16", Skipping)])
def test_a_skipped_step_leaves_weights_and_running_statistics_as_they_were(
    precision: str, optimizer: type[torch.optim.Optimizer]
) -> None:
    net, source = network(), batches()
    updater = Updater(net, optimizer(net.parameters(), lr=0.0), precision=precision)  # type: ignore[call-arg]
    assert step(net, updater, next(source), precision)
    before = state(net)
    spoilt = OVERFLOW if precision == "fp16" else torch.nan
    assert not step(net, updater, next(source) * spoilt, precision)
    assert_equal(state(net), before)
    assert step(net, updater, next(source), precision)
    after = state(net)
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert after["1.num_batches_tracked"] == 2
    assert all(value.isfinite().all() for value in after.values())


def test_running_statistics_go_on_as_if_the_skipped_batch_had_never_come() -> None:
    found = []
    for spoilt in (False, True):
        net, source = network(), batches()
        updater = Updater(net, torch.optim.SGD(net.parameters(), lr=0.0), precision="fp16")
        for number in range(3):
            if number == 1 and spoilt:
                assert not step(net, updater, torch.full((4, 3, 8, 8), OVERFLOW), "fp16")
            assert step(net, updater, next(source), "fp16")
        found.append({name: value for name, value in state(net).items() if "running" in name or "tracked" in name})
    assert len(found[0]) == 6
    assert_equal(found[1], found[0])


def test_a_flag_on_the_device_is_never_read_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta tensors, which hold no value, every read raises."""
    with torch.device("meta"):
        net = network()
        updater = Updater(net, Skipping(net.parameters(), lr=0.0))
        assert isinstance(updater(_stepped(net, updater)).finite, Tensor)


def _stepped(net: nn.Module, updater: Updater) -> Tensor:
    updater.set_rates({"lr": 1e-3})
    updater.begin()
    total = net(torch.empty(4, 3, 8, 8)).square().mean()
    updater.backward(total)
    return total.detach()


def test_an_optimizer_that_cannot_skip_is_not_called() -> None:
    net, source = network(), batches()
    updater = Updater(net, torch.optim.AdamW(net.parameters(), lr=0.0))
    assert step(net, updater, next(source), "off")
    before, moments = state(net), {name: value.clone() for name, value in updater.state().tensors.items()}
    with pytest.raises(RuntimeError, match=NON_FINITE):
        step(net, updater, next(source) * torch.nan, "off")
    assert_equal(state(net), before)
    assert_equal(updater.state().tensors, moments)


def test_a_gradient_that_is_not_finite_counts_as_much_as_a_loss() -> None:
    net, source = network(), batches()
    updater = Updater(net, Skipping(net.parameters(), lr=0.0))
    net[0].weight.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[union-attr]
    before = state(net)
    assert not step(net, updater, next(source), "off")
    assert_equal(state(net), before)


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_resumed_step_count_lies_where_the_optimizer_reads_it(name: str, captured: bool) -> None:
    """On a device that is not the host: a fused kernel given the host's address reads what is not its own."""
    net = nn.Linear(4, 3, device="meta")
    config = OptimConfig(optimizer=name)  # type: ignore[arg-type]
    optimizer = build_optimizer(config, by_dimension(net), batch_size=256, captured=captured)
    saved = {"weight/step": torch.tensor(7.0), "weight/exp_avg": torch.ones(3, 4)}
    Updater(net, optimizer).load(UpdaterState(saved, {}))
    loaded = optimizer.state[net.weight]
    assert loaded["step"].device.type == ("meta" if captured else "cpu")
    assert loaded["exp_avg"].device.type == "meta"


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_captured_optimizer_whose_first_step_is_skipped_starts_with_the_second(name: str) -> None:
    """Under fp16 the first ones are skipped until the scale fits; fresh memory holds NaN here."""
    config = OptimConfig(optimizer=name)  # type: ignore[arg-type]
    found = []
    torch.use_deterministic_algorithms(True)  # which fills it
    try:
        for skipped in (True, False):
            net = network()
            updater = Updater(net, build_optimizer(config, by_dimension(net), batch_size=256, captured=True))
            source = batches()
            if skipped:
                assert not step(net, updater, next(batches()) * torch.nan, "off")
            assert step(net, updater, next(source), "off")
            assert step(net, updater, next(source), "off")
            found.append(state(net))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal(*found)
