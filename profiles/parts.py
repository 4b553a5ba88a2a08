"""A run's parts as loops: the whole step or one part of it alone, again and again, for as long as one measures.

The learning rate is 0 throughout: the same work as in training, and weights that stay, so that nothing diverges.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils._pytree import tree_leaves, tree_map

from fastvicreg import stages
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Batch, Crops, Cursor, Engine, FaultReport
from fastvicreg.errors import UserError
from fastvicreg.show.metrics import Recorder
from fastvicreg.train.assemble import Run, assemble

Loop = Generator[Cursor, None, None]
"""Each ``next`` is one batch's work, and gives the batch that it was; ``close`` ends it."""

Item = TypeVar("Item")
START = Cursor(0, 0)


@contextmanager
def opened(config: TrainConfig) -> Iterator[Run]:
    """The assembled run of ``config``, closed at the end. ``UserError`` where the device's memory does not hold it."""
    run = assemble(config)
    try:
        yield run
    except torch.OutOfMemoryError as error:
        size = config.run.batch_size
        raise UserError(f"the device's memory does not hold this: give less than --batch-size {size}.") from error
    finally:
        run.engine.close()
        run.data.close()
        run.step.close()


def endless(batches: Callable[[Cursor], Iterator[Item]], start: Cursor) -> Generator[Item, None, None]:
    """``batches`` from ``start`` on, epoch after epoch."""
    cursor = start
    while True:
        yield from batches(cursor)
        cursor = Cursor(cursor.epoch + 1, 0)


def whole(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """As ``fastvicreg train``: feed, step and records, but no evaluation and no checkpoint."""
    with tempfile.TemporaryDirectory() as folder, closing(endless(run.feed.epoch, start)) as feed:
        recorder, scalars = Recorder(Path(folder)), still(config, run)
        try:
            for step, fed in enumerate(feed, 1):
                terms = run.step(fed.batch, scalars)
                at, waited = fed.batch.cursor, fed.data_wait.seconds
                recorder.step(step, at, terms, scalars, images=config.run.batch_size, data_wait=waited)
                if step % config.run.log_every == 0:
                    recorder.flush()
                yield at
        finally:
            recorder.close()


def loader(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """The engine alone: uint8 crops on the host."""
    with closing(endless(run.engine.batches, start)) as crops:
        while True:
            with record_function(stages.DATA_WAIT):
                batch = next(crops)
            yield batch.cursor


def fed(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """Loader, copy to the device and augmentation, without training."""
    with closing(endless(run.feed.epoch, start)) as feed:
        for batch in feed:
            yield batch.batch.cursor


def augment(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """Copy to the device and augmentation of one batch of the engine's crops."""
    return fed(config, with_engine(run, Same(run.engine, first_crops(run))), start)


def loss(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """The loss's forward and backward on the embeddings of one batch, whichever method's they are."""
    method, views = run.method, first_batch(run).inputs
    with run.step.autocast():
        embeddings, targets = method.embed(views), method.target(views)
    # Copied: embeddings alone, not the network's memory behind them.
    embeddings = tree_map(_cut_off, embeddings)
    leaves = [leaf for leaf in tree_leaves(embeddings) if isinstance(leaf, Tensor) and leaf.requires_grad]
    while True:
        for leaf in leaves:
            leaf.grad = None
        with record_function(stages.LOSS), run.step.autocast():
            terms = method.loss(embeddings, targets)
        with record_function(stages.BACKWARD):
            terms.total.backward()
        yield start


def lars(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """The finite gate and the optimizer's update, whichever optimizer it is, on the gradients of one batch."""
    total = run.step(first_batch(run), still(config, run)).total
    while True:
        run.step.updater(total)
        yield start


def step(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """Forward, loss, backward and update on the views of one batch: the whole run but for its data."""
    batch, scalars = first_batch(run), still(config, run)
    while True:
        run.step(batch, scalars)
        yield start


PARTS: dict[str, Callable[[TrainConfig, Run], Loop]] = {
    "loader": loader,
    "augment": augment,
    "loss": loss,
    "lars": lars,
    "step": step,
}


@dataclass(frozen=True)
class Same:
    """An engine that delivers one batch of crops again and again, as batches of ``engine``'s epochs."""

    engine: Engine
    crops: Crops

    def batches_per_epoch(self, epoch: int) -> int:
        return self.engine.batches_per_epoch(epoch)

    def batches(self, start: Cursor) -> Iterator[Crops]:
        for _ in range(start.batch, self.batches_per_epoch(start.epoch)):
            yield self.crops

    def faults(self) -> FaultReport:
        return FaultReport({}, ())

    def close(self) -> None:
        """Nothing is held."""


def first_crops(run: Run) -> Crops:
    """The first batch as the engine delivers it."""
    return _first(run.engine.batches)


def first_batch(run: Run) -> Batch:
    """The first batch as the step takes it."""
    return _first(run.feed.epoch).batch


def still(config: TrainConfig, run: Run) -> dict[str, float]:
    """A step's scalars for a network that stays as it is: learning rate 0, the method's schedules at their start.

    Over the horizon that training has, so that what it refuses is refused here, and nothing else.
    """
    schedules = run.method.schedules(run.horizon(config))
    return {"lr": 0.0} | {name: schedule(0) for name, schedule in schedules.items()}


def _cut_off(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


def with_engine(run: Run, engine: Engine) -> Run:
    """``run`` with its data from ``engine``."""
    return replace(run, engine=engine, feed=run.feed.replaced(engine=engine))


def _first(batches: Callable[[Cursor], Iterator[Item]]) -> Item:
    with closing(endless(batches, START)) as stream:
        return next(stream)
