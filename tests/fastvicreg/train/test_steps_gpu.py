"""Ways to run a step on a GPU: a recorded one is the eager one, after a resume too, and the host waits for neither."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from stepping import RATES, batches, vicreg

from fastvicreg.config import OptimConfig
from fastvicreg.contracts import Batch, Cursor, by_dimension
from fastvicreg.train import checkpoint, distributed
from fastvicreg.train.assemble import build_optimizer
from fastvicreg.train.batch_norm import own_group, replace_norms
from fastvicreg.train.checkpoint import Progress
from fastvicreg.train.steps.cached.step import CachedStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.steps.graphed.step import EAGER_STEPS_OF_MANY, GraphedStep
from fastvicreg.train.updater import Updater

pytestmark = pytest.mark.gpu

OF_RATE = {"lars": 1.0, "sgd": 1e-3, "adamw": 1e-3}
"""Of the rates that are LARS's, the share that another optimizer takes without diverging."""

IN_PARTS = partial(CachedStep, micro_batches=2)
"""A batch of 8 in two parts."""


def built(kind: Any, optimizer: str, precision: str, device: str = "cuda", ranks: int = 1) -> Any:
    method = vicreg().to(device)
    replace_norms(method, ranks=ranks, group=own_group() if ranks > 1 else "", joint=True)
    config = OptimConfig(optimizer=optimizer)  # type: ignore[arg-type]
    made = build_optimizer(config, by_dimension(method), batch_size=8, captured=kind is GraphedStep)
    updater = Updater(method, made, device=device, precision=precision)
    return kind(method, updater, device=device, precision=precision, world_size=ranks)


def there(batch: Batch, device: str = "cuda", rows: slice = slice(None)) -> Batch:
    return replace(batch, views=tuple(view[rows].to(device) for view in batch.views))


def rates(number: int, optimizer: str) -> dict[str, float]:
    own = RATES[number % len(RATES)]
    return {**own, "lr": own["lr"] * OF_RATE[optimizer]}


def trained(step: Any, count: int, first: int = 0, optimizer: str = "lars") -> list[float]:
    """The totals of that many steps, each read at once."""
    given = batches(first + count)[first:]
    return [float(step(there(batch), rates(at, optimizer)).total) for at, batch in enumerate(given, first)]


@pytest.mark.parametrize("precision", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_a_recorded_step_is_the_eager_one_and_goes_on_from_a_checkpoint(
    optimizer: str, precision: str, tmp_path: Path
) -> None:
    near = {"off": 1e-4, "bf16": 3e-2, "fp16": 1e-2}[precision]
    eager, recorded, resumed = (built(kind, optimizer, precision) for kind in (EagerStep, GraphedStep, GraphedStep))
    wanted, found = (trained(step, count, optimizer=optimizer) for step, count in ((eager, 10), (recorded, 6)))
    path = checkpoint.save(tmp_path, Progress(Cursor(0, 6), 6, 8), recorded.method, recorded.updater, keep=2)
    checkpoint.restore(path, resumed.method, resumed.updater)
    whole, again = (found + trained(step, 4, 6, optimizer) for step in (recorded, resumed))
    assert whole == pytest.approx(wanted, rel=near, nan_ok=precision == "fp16")
    assert again == pytest.approx(wanted, rel=near, nan_ok=precision == "fp16")
    for step in (recorded, resumed):
        step.close()


@pytest.fixture
def _no_waits() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize("kind", [EagerStep, GraphedStep, IN_PARTS])
def test_the_host_waits_for_no_step(kind: Any) -> None:
    step = built(kind, "lars", "bf16")
    trained(step, 6)
    given = there(batches(1)[0])
    torch.cuda.set_sync_debug_mode("error")
    step(given, RATES[0])
    total = step(given, RATES[0]).total
    with pytest.raises(RuntimeError, match="synchronizing"):  # negative control
        float(total)


def test_a_cached_step_on_a_gpu_is_a_cpu_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as a run without --precision tf32 has it
    there_too, here = (built(IN_PARTS, "lars", "off", device) for device in ("cuda", "cpu"))
    for number, batch in enumerate(batches(6)):
        found, wanted = (
            step(there(batch, device), rates(number, "lars")) for step, device in ((there_too, "cuda"), (here, "cpu"))
        )
        assert float(found.total) == pytest.approx(float(wanted.total), rel=1e-4)
    for name, value in here.method.state_dict().items():
        torch.testing.assert_close(there_too.method.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_snapshot_is_of_its_moment_whatever_the_device_does_next() -> None:
    """Its copies are asked for and not waited for: the next step's writes come behind them."""
    step, progress = built(EagerStep, "lars", "off"), Progress(Cursor(0, 2), 2, 8)
    trained(step, 2)
    checkpoint.snapshot(progress, step.method, step.updater)  # the host's memory is page-locked once
    torch.cuda.synchronize()
    before = {name: value.clone() for name, value in step.method.state_dict().items()}
    torch.cuda._sleep(100_000_000)
    taken = checkpoint.snapshot(progress, step.method, step.updater)
    assert taken.copied is not None
    assert not taken.copied.query()
    trained(step, 2, 2)
    taken.copied.synchronize()
    for name, value in before.items():
        assert torch.equal(taken.model[name], value.cpu()), name
    assert any(not torch.equal(value, before[name]) for name, value in step.method.state_dict().items())


def _among_two(rank: int, folder: str) -> None:
    device = f"cuda:{rank}"
    torch.cuda.set_device(device)
    store = f"file://{folder}/store"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=store, rank=rank, world_size=2)
    step = built(GraphedStep, "lars", "off", device, 2)
    for number, batch in enumerate(batches(EAGER_STEPS_OF_MANY + 4)):
        step(there(batch, device, slice(4 * rank, 4 * rank + 4)), RATES[number % len(RATES)])
    torch.save({name: value.cpu() for name, value in step.method.state_dict().items()}, f"{folder}/{rank}.pt")
    step.close()
    distributed.leave()  # which waits for ever where a graph still holds its messages


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_record_their_messages_and_part(tmp_path: Path) -> None:
    mp.spawn(_among_two, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = built(EagerStep, "lars", "off")
    start = copy.deepcopy(alone.method.state_dict())
    trained(alone, EAGER_STEPS_OF_MANY + 4)
    for name, value in alone.method.state_dict().items():
        for half in halves:
            torch.testing.assert_close(half[name], value.cpu(), rtol=1e-3, atol=1e-4, msg=name)
    assert any(not torch.equal(value, start[name]) for name, value in alone.method.state_dict().items())
