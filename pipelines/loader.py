"""A loader for anyone's own training loop: an iterable of augmented view batches, with a cursor to resume from."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from operator import index
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from fastvicreg.contracts import Cursor, FaultReport, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.pipelines.plan import Shuffle, train_plan
from fastvicreg.pipelines.reading import Reading
from fastvicreg.pipelines.recipes import Recipe, named_recipe
from fastvicreg.pipelines.sources import open_source


class ViewBatch(NamedTuple):
    """One batch; ``for views, label_B, index_B in loader`` takes it apart."""

    views: tuple[Tensor, ...]  # (B, 3, H, W) each, normalised, channels_last; or (B, H, W, 3) uint8
    label_B: Tensor  # int64, -1: none
    index_B: Tensor  # int64, the sample's number in the data


class ViewLoader:
    """Every ``for`` over it is one epoch, the next one each time; the last, partial batch is left out.

    Order, crops and augmentation are functions of ``seed``, epoch, sample and view. ``state_dict()`` is the place of
    the next batch: a loader that has loaded it gives what this one would. Use it in ``with``, or close it: that ends
    its threads.
    """

    def __init__(
        self,
        data: str | Path | Source,
        *,
        batch_size: int,
        recipe: str | Recipe = "official",
        image_size: int | Sequence[int] = 224,
        epochs: int = 1,
        small_size: int = 0,
        num_views: int = 0,
        seed: int = 0,
        shuffle: Shuffle = "full",
        pipeline: str = "native",
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        prefetch: int = 3,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        budget: FaultBudget | None = None,
    ) -> None:
        """Open ``data`` and start the threads.

        Args:
            data: what ``open_source`` opens, or a source.
            batch_size: of all ranks together; each gets an equal share.
            recipe: official, paper, small, multicrop, supervised (one view), or a ``Recipe`` of your own.
            image_size: side of the views in pixels; several: each for an equal share of the ``epochs``.
            small_size: side of a named recipe's small views; 0: 96.
            num_views: of each image, a named recipe's own and these again in turn; 0: the recipe's.
            pipeline: native (any data), ffcv, dali, synthetic.
            rank: this process among those that share a batch, counted from 0.
            world_size: how many share it.
            workers: decoding threads, 0: one a core; ``prefetch`` batches, 1 or more, are decoded ahead.
            device: where the views are made.
            dtype: float32, bfloat16 or float16; uint8 leaves augmentation and normalisation to you.

        Raises:
            UserError: there is nothing to read, it is being added to, or an argument outside its range.
        """
        self._device = device
        self._closed = False
        self._reading = Reading(*([data] if isinstance(data, str | Path) else []))
        try:
            source = open_source(data) if isinstance(data, str | Path) else data
            if isinstance(recipe, str):
                recipe = named_recipe(recipe, small_size=small_size, num_views=num_views)
            elif small_size or num_views:
                asked = f"small_size = {small_size}" if small_size else f"num_views = {num_views}"
                raise UserError(f"{asked} changes a named recipe: build it into the Recipe, or leave it out.")
            plan = train_plan(
                len(source), seed=seed, recipe=recipe, image_size=image_size, epochs=epochs, shuffle=shuffle
            )
            self.classes = source.classes
            self._engine = build_engine(
                pipeline,
                source,
                plan,
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                workers=workers,
                prefetch=prefetch,
                device=device,
                budget=budget,
            )
        except BaseException:
            self._reading.close()
            raise
        try:
            self._feed = None if dtype is torch.uint8 else AugmentedFeed(self._engine, plan, device=device, dtype=dtype)
        except BaseException:
            self.close()
            raise
        self._next = self._following = Cursor(0, 0)  # the next batch; where the next ``for`` begins

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._engine.batches_per_epoch(0)

    def __iter__(self) -> Iterator[ViewBatch]:
        """One epoch; ``UserError`` where more samples cannot be read than the budget allows, where a later ``for`` has
        ended this one, and where the loader is closed."""
        if self._closed:
            raise UserError("this ViewLoader is closed: open a new one, and load_state_dict() to go on where it was.")
        start = self._next = self._following
        self._following = Cursor(start.epoch + 1, 0)
        for batch, cursor in self._batches(start):
            last = cursor.batch + 1 == len(self)
            self._next = self._following if last else Cursor(cursor.epoch, cursor.batch + 1)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The place of the batch after the one delivered last."""
        return {"epoch": self._next.epoch, "batch": self._next.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next ``for`` begin there; ``UserError`` for a place that this loader does not have."""
        try:
            cursor = Cursor(index(state["epoch"]), index(state["batch"]))
        except (KeyError, TypeError):
            raise UserError(f"{state!r} is no place: give what state_dict() returned, an epoch and a batch.") from None
        if cursor.epoch < 0 or not 0 <= cursor.batch < len(self):
            raise UserError(f"no batch {cursor.batch} of epoch {cursor.epoch}: an epoch has {len(self)} batches here.")
        self._next = self._following = cursor

    def faults(self) -> FaultReport:
        """The samples that a neighbour stands for, since the epoch's start."""
        return self._engine.faults()

    def close(self) -> None:
        """End the threads, and let others add to the data."""
        self._closed = True
        self._engine.close()
        self._reading.close()

    def __enter__(self) -> ViewLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _batches(self, start: Cursor) -> Generator[tuple[ViewBatch, Cursor], None, None]:
        if self._feed is None:
            for crops in self._engine.batches(start):
                views = tuple(view.to(self._device, non_blocking=True) for view in crops.views)
                yield ViewBatch(views, crops.label_B, crops.index_B), crops.cursor
            return
        for fed in self._feed.epoch(start):
            batch = fed.batch
            yield ViewBatch(batch.views, batch.label_B, batch.index_B), batch.cursor
