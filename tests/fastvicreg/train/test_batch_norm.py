"""Batch norm over several processes: as one process with the whole batch, traced whole, and no wait for the device."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from synchronised import compiled, expected, shared
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from fastvicreg.kernels.norm import BatchNorm, JointViews
from fastvicreg.train.batch_norm import replace_norms

KINDS, VIEWS = ("1-D", "2-D"), (1, 2)
WIDE = list(itertools.product(KINDS, (torch.float64,), VIEWS))
ALL = [*WIDE, *itertools.product(KINDS, (torch.float32, torch.bfloat16), VIEWS)]
NEAR = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}
NAMES = ("output", "input", "residual", "weight", "bias", "running mean", "running variance", "batches")


def assert_same(found: Any, wanted: Any, dtype: torch.dtype) -> None:
    for name, value, other in zip(NAMES, found, wanted, strict=True):
        assert value.dtype == other.dtype, name
        difference = (value.double() - other.double()).norm()
        assert difference <= NEAR[dtype] * other.double().norm(), name


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return shared(tmp_path_factory.mktemp("eager"), ALL)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return shared(tmp_path_factory.mktemp("traced"), WIDE, wrap=compiled)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_two_processes_normalise_as_one(eager: dict[Any, Any], case: Any) -> None:
    """Uneven shares of the batch too; outputs, gradients and running statistics, of both views in one collective."""
    assert_same(eager[case], expected(*case), case[1])


@pytest.mark.slow
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_a_compiler_takes_it_whole(traced: dict[Any, Any], case: Any) -> None:
    assert_same(traced[case], expected(*case), case[1])


WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item")
COLLECTIVES = ("_allgather_base_", "allgather_", "allreduce_", "norm_gather", "norm_sum")


class Counted(TorchDispatchMode):
    """Operations that make the host wait for a device, and collectives, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.collectives: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indexed = name == "index" and any(each is not None and each.dtype == torch.bool for each in args[1])
        to_host = name == "_to_copy" and torch.device((kwargs or {}).get("device") or "meta").type == "cpu"
        if name in WAITS or indexed or to_host:
            self.waits.append(name)
        if name in COLLECTIVES:
            self.collectives.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def two_ranks() -> Any:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    group = torch.distributed.group.WORLD
    assert group is not None
    yield group.group_name
    torch.distributed.destroy_process_group()


def test_a_norm_makes_two_collectives_and_no_wait(two_ranks: str) -> None:
    """One all-gather forward and one all-reduce backward, both views together; a value on the host would raise."""
    with FakeTensorMode(), Counted() as counted:
        norm = BatchNorm.of(nn.BatchNorm2d(6), ranks=2, group=two_ranks, joint_views=JointViews(2))
        x = torch.randn(8, 6, 4, 4, requires_grad=True)
        norm(x, torch.randn(8, 6, 4, 4), relu=True).sum().backward()
    assert counted.waits == []
    assert counted.collectives == ["norm_gather", "norm_sum"]


def test_the_same_is_found_with_values(two_ranks: str) -> None:
    """As above without fake tensors: what the eager path calls."""
    with Counted() as counted:
        norm = BatchNorm.of(nn.BatchNorm2d(6), ranks=2, group=two_ranks)
        x = torch.randn(8, 6, 4, 4, requires_grad=True)
        norm(x, relu=True).sum().backward()
    assert counted.waits == []
    assert len(counted.collectives) == 2


def test_the_counter_finds_the_waits_of_torchs(two_ranks: str) -> None:
    """Negative control: what nn.SyncBatchNorm does with the counts it gathers."""
    with Counted() as counted:
        gathered_RX = torch.rand(2, 13)
        mask_R = gathered_RX[:, -1] >= 1
        gathered_RX[mask_R]
        float(gathered_RX.sum())
    assert counted.waits == ["index", "_local_scalar_dense"]
    with FakeTensorMode(), pytest.raises(DynamicOutputShapeException):
        torch.rand(2, 13)[torch.rand(2) > 0].sum()


def test_names_and_weights_stay_and_a_relu_is_taken_in() -> None:
    norms = (nn.BatchNorm2d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    module: Any = nn.Sequential(nn.Conv2d(3, 4, 1), norms[0], nn.Sequential(norms[1], nn.ReLU(), norms[2], nn.Tanh()))
    nn.init.uniform_(module.get_parameter("1.weight"))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    held = dict(module.named_parameters())
    replace_norms(module)
    assert [type(layer).__name__ for layer in module[2]] == ["BatchNorm", "Identity", "BatchNorm", "Tanh"]
    assert [layer.relu for layer in module.modules() if isinstance(layer, BatchNorm)] == [False, True, False]
    after = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(value is held[name] for name, value in module.named_parameters())  # an optimizer keeps them


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_and_training_are_torchs(training: bool) -> None:
    plain: Any = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(5, 6)

    def outcome() -> list[Tensor]:
        plain.load_state_dict(start)
        plain.zero_grad()
        y = plain.train(training)(x)
        y.square().sum().backward()
        return [y.detach(), *(value.clone() for value in plain.state_dict().values()), plain[0].weight.grad.clone()]

    start = {name: value.clone() for name, value in plain.state_dict().items()}
    torchs = outcome()
    replace_norms(plain)
    for value, other in zip(outcome(), torchs, strict=True):
        assert torch.equal(value, other)
