"""A run's parts as loops: the whole step or one part of it alone, again and again, for as long as one measures.

The learning rate is 0 throughout: the same work as in training, and weights that stay, so that nothing diverges.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import record_function

from fastvicreg import stages
from fastvicreg.assemble import Run, assemble
from fastvicreg.config import TrainConfig, kernel_choices
from fastvicreg.contracts import Crops, Cursor, Engine, Views
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.metrics import Recorder
from fastvicreg.step import AUTOCAST

Loop = Generator[Cursor, None, None]
"""Each ``next`` is one batch's work, and gives the batch that it was; ``close`` ends it."""

Batch = TypeVar("Batch")
SCHEDULE = {"lr": 0.0}
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


def endless(batches: Callable[[Cursor], Iterator[Batch]], start: Cursor) -> Generator[Batch, None, None]:
    """``batches`` from ``start`` on, epoch after epoch."""
    cursor = start
    while True:
        yield from batches(cursor)
        cursor = Cursor(cursor.epoch + 1, 0)


def whole(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """As ``fastvicreg train``: feed, step and records, but no evaluation and no checkpoint."""
    with tempfile.TemporaryDirectory() as folder, closing(endless(run.feed.epoch, start)) as feed:
        recorder = Recorder(Path(folder))
        try:
            for step, fed in enumerate(feed, 1):
                terms = run.step(fed.views.views, SCHEDULE)
                at, waited = fed.views.cursor, fed.data_wait.seconds
                recorder.step(step, at, terms, lr=0.0, images=config.run.batch_size, data_wait=waited)
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
            yield batch.views.cursor


def augment(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """Copy to the device and augmentation of one batch of the engine's crops."""
    return fed(config, with_engine(run, Same(run.engine, first_crops(run))), start)


def loss(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """The loss's forward and backward on the embeddings of one batch; ``UserError`` for another objective's."""
    settings, expander = config.objective, getattr(run.step.objective, "expander", None)
    if settings.objective != "vicreg" or expander is None:
        raise UserError(f"--part loss takes --objective vicreg, not {settings.objective}: profile --part step.")
    impl = kernel_choices(config)["loss"]
    with torch.no_grad(), autocast(run):
        # Copied: embeddings alone, not the network's memory behind them.
        za_BD, zb_BD = (expander(run.encoder(view)).clone() for view in first_views(run).views)
    za_BD.requires_grad_()
    zb_BD.requires_grad_()
    while True:
        za_BD.grad = zb_BD.grad = None
        with record_function(stages.LOSS):
            terms = vicreg_loss(
                za_BD,
                zb_BD,
                invariance=settings.invariance,
                variance=settings.variance,
                covariance=settings.covariance,
                form=settings.loss_form,
                impl=impl,
            )
        with record_function(stages.BACKWARD):
            terms.total.backward()
        yield start


def lars(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """The finite gate and the optimizer's update, whichever optimizer it is, on the gradients of one batch."""
    total = run.step(first_views(run).views, SCHEDULE).total
    while True:
        run.step.updater(total)
        yield start


def step(config: TrainConfig, run: Run, start: Cursor = START) -> Loop:
    """Forward, loss, backward and update on the views of one batch: the whole run but for its data."""
    views = first_views(run).views
    while True:
        run.step(views, SCHEDULE)
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

    def faults(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Nothing is held."""


def first_crops(run: Run) -> Crops:
    """The first batch as the engine delivers it."""
    return _first(run.engine.batches)


def first_views(run: Run) -> Views:
    """The first batch as the step takes it."""
    return _first(run.feed.epoch).views


def autocast(run: Run) -> torch.autocast | nullcontext[None]:
    """The precision in which the run's step does its forward pass."""
    dtype = AUTOCAST[run.precision]
    return torch.autocast(torch.device(run.device).type, dtype) if dtype else nullcontext()


def with_engine(run: Run, engine: Engine) -> Run:
    """``run`` with its data from ``engine``."""
    return replace(run, engine=engine, feed=run.feed.replaced(engine=engine))


def _first(batches: Callable[[Cursor], Iterator[Batch]]) -> Batch:
    with closing(endless(batches, START)) as stream:
        return next(stream)
