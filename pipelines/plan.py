"""Which samples, which crops, which photometric parameters: pure functions of (seed, epoch, sample, view).

N samples, B batch, V views, P photometric parameters (``contracts.Photometric``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvicreg.contracts import Photometric, Support, UserError, photometric_identity
from fastvicreg.pipelines.draws import (
    block_permutation,
    central_boxes,
    permutation,
    random_boxes,
    random_photometric,
    view_records,
)
from fastvicreg.pipelines.recipes import Recipe

Shuffle = Literal["full", "blocks"]


class TrainPlan:
    """A training run's choices; made by ``train_plan``."""

    support: Support = "crop"

    def __init__(
        self,
        samples: int,
        seed: int,
        recipe: Recipe,
        image_sizes: tuple[int, ...],
        epochs: int,
        shuffle: Shuffle,
        block: int,
        group: int,
        drop_last: bool,
    ) -> None:
        self.samples = samples
        self.seed = seed
        self.recipe = recipe
        self.views: int = len(recipe.views)
        self.image_sizes = image_sizes
        self.epochs = epochs
        self.shuffle: Shuffle = shuffle
        self.block = block
        self.group = group
        self.drop_last = drop_last
        self._view_V = view_records(recipe.views)

    def order(self, epoch: int) -> Tensor:
        """index_N, int64: a permutation of all samples, another one each epoch."""
        _check_epoch(epoch)
        if self.shuffle == "full":
            return torch.from_numpy(permutation(self.seed, epoch, self.samples))
        return torch.from_numpy(block_permutation(self.seed, epoch, self.samples, self.block, self.group))

    def sizes(self, epoch: int) -> tuple[int, ...]:
        """Side of each view's square crops in pixels."""
        _check_epoch(epoch)
        place = min(epoch * len(self.image_sizes) // self.epochs, len(self.image_sizes) - 1)
        return tuple(view.size or self.image_sizes[place] for view in self.recipe.views)

    def boxes(self, epoch: int, index_B: Tensor, wh_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Where each view is cut, as torchvision's RandomResizedCrop.get_params and RandomHorizontalFlip draw it.

        Args:
            epoch: counted from 0.
            index_B: int64 samples.
            wh_B2: int64 (width, height) of each sample in pixels, at least 1.

        Returns:
            (box_BV4 float64, integral x, y, w, h in source pixels; flip_BV bool).

        Raises:
            ValueError: a negative epoch, an index outside the source, an empty image.
        """
        index, wh = index_B.numpy(), wh_B2.numpy()
        _check_epoch(epoch)
        _check_arrays(index, wh)
        box_BV4 = np.empty((len(index), self.views, 4))
        flip_BV = np.empty((len(index), self.views), np.bool_)
        bad = random_boxes(self.seed, epoch, self.samples, index, wh, self._view_V, box_BV4, flip_BV)
        if bad >= 0:
            raise ValueError(_complaint(self.samples, index[int(bad)], wh[bad]))
        return torch.from_numpy(box_BV4), torch.from_numpy(flip_BV)

    def photometric(self, epoch: int, index_B: Tensor) -> Tensor:
        """params_BVP, float32, columns as in ``Photometric``: ColorJitter, RandomGrayscale, blur, solarization.

        ``ValueError`` for a negative epoch or an index outside the source.
        """
        _check_epoch(epoch)
        index = index_B.numpy()
        _check_arrays(index)
        params_BVP = np.empty((len(index), self.views, len(Photometric)), np.float32)
        bad = random_photometric(self.seed, epoch, self.samples, index, self._view_V, params_BVP)
        if bad >= 0:
            raise ValueError(_complaint(self.samples, index[int(bad)]))
        return torch.from_numpy(params_BVP)


class EvalPlan:
    """One central view of every sample, in file order; made by ``eval_plan``."""

    drop_last: bool = False
    support: Support = "image"

    def __init__(self, samples: int, resize: int, crop: int) -> None:
        self.samples = samples
        self.views: int = 1
        self.resize = resize
        self.crop = crop

    def order(self, epoch: int) -> Tensor:
        """index_N, int64: 0, 1, 2, ..."""
        _check_epoch(epoch)
        return torch.arange(self.samples)

    def sizes(self, epoch: int) -> tuple[int, ...]:
        """Side of the one view's square crops in pixels."""
        _check_epoch(epoch)
        return (self.crop,)

    def boxes(self, epoch: int, index_B: Tensor, wh_B2: Tensor) -> tuple[Tensor, Tensor]:
        """torchvision's Resize (the shorter side) and CenterCrop as one box in source pixels, fractional.

        Arguments, results and errors as in ``TrainPlan.boxes``; never flipped.
        """
        index, wh = index_B.numpy(), wh_B2.numpy()
        _check_epoch(epoch)
        _check_arrays(index, wh)
        box_BV4 = np.empty((len(index), 1, 4))
        bad = central_boxes(self.resize, self.crop, self.samples, index, wh, box_BV4)
        if bad >= 0:
            raise ValueError(_complaint(self.samples, index[int(bad)], wh[bad]))
        return torch.from_numpy(box_BV4), torch.zeros((len(index), 1), dtype=torch.bool)

    def photometric(self, epoch: int, index_B: Tensor) -> Tensor:
        """params_BVP that leave every pixel as it is; ``ValueError`` as in ``TrainPlan.photometric``."""
        _check_epoch(epoch)
        index = index_B.numpy()
        _check_arrays(index)
        outside = (index < 0) | (index >= self.samples)
        if outside.any():
            raise ValueError(_complaint(self.samples, index[outside.argmax()]))
        return photometric_identity(len(index), 1)


def train_plan(
    samples: int,
    *,
    seed: int,
    recipe: Recipe,
    image_size: int | Sequence[int],
    epochs: int = 1,
    shuffle: Shuffle = "full",
    block: int = 256,
    group: int = 64,
    drop_last: bool = True,
) -> TrainPlan:
    """The plan of a training run.

    Args:
        samples: length of the source.
        seed: 0 to 2^63 - 1.
        recipe: the views and their augmentations.
        image_size: side in pixels of the square crops that have no size of their own in the recipe; or several, each
            for an equal share of the epochs, one after another.
        epochs: of the whole run; matters where there are several sizes.
        shuffle: "full", any order of all samples; or "blocks", which keeps reads local on slow disks: blocks of
            ``block`` consecutive samples come in random order, and samples are shuffled within ``group`` blocks.
            A batch then holds samples of ``group`` places in the source: fit for sources stored in random order.
        block: samples in a block.
        group: blocks shuffled together.
        drop_last: leave out an epoch's last batch where it would be smaller than the others.

    Raises:
        UserError: an argument outside its range.
    """
    image_sizes = (image_size,) if isinstance(image_size, int) else tuple(image_size)
    sides = [("image_size", side) for side in image_sizes]
    for name, value in (("samples", samples), *sides, ("epochs", epochs), ("block", block), ("group", group)):
        _check_positive(name, value)
    if not 1 <= len(image_sizes) <= max(1, epochs):
        raise UserError(f"image_size = {image_sizes}: give at least one, and no more than the {epochs} epochs.")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed = {seed}: choose one from 0 to 2^63 - 1.")
    if shuffle not in ("full", "blocks"):
        raise UserError(f"shuffle = {shuffle!r}: choose full or blocks.")
    return TrainPlan(samples, seed, recipe, image_sizes, epochs, shuffle, block, group, drop_last)


def eval_plan(samples: int, *, resize: int = 256, crop: int = 224) -> EvalPlan:
    """The plan of an evaluation: the shorter side resized to ``resize``, the central ``crop`` x ``crop`` pixels kept.

    Raises:
        UserError: an argument below 1, or ``crop`` above ``resize``.
    """
    for name, value in (("samples", samples), ("resize", resize), ("crop", crop)):
        _check_positive(name, value)
    if crop > resize:
        raise UserError(f"crop = {crop} is larger than resize = {resize}: choose a crop of at most {resize}.")
    return EvalPlan(samples, resize, crop)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} = {value}: choose 1 or more.")


def _check_epoch(epoch: int) -> None:
    if epoch < 0:
        raise ValueError(f"epoch {epoch}: epochs are counted from 0")


def _check_arrays(index_B: NDArray[np.int64], wh_B2: NDArray[np.int64] | None = None) -> None:
    assert index_B.ndim == 1, index_B.shape
    assert index_B.dtype == np.int64, index_B.dtype
    if wh_B2 is not None:
        assert wh_B2.shape == (len(index_B), 2), (wh_B2.shape, index_B.shape)
        assert wh_B2.dtype == np.int64, wh_B2.dtype


def _complaint(samples: int, index: np.int64, wh_2: NDArray[np.int64] | None = None) -> str:
    if not 0 <= index < samples:
        return f"sample {index} is outside the source of {samples} samples"
    assert wh_2 is not None
    return f"sample {index} has no pixels: width {wh_2[0]}, height {wh_2[1]}"
