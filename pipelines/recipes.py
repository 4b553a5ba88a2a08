"""Augmentation recipes: how likely and how strong each operation is, view by view."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fastvicreg.contracts import UserError
from fastvicreg.registry import unknown

Range = tuple[float, float]

MOST_VIEWS = 64
"""Of one image: each takes a forward and a backward pass."""


@dataclass(frozen=True)
class ViewRecipe:
    """One view's operations, in the order in which they are applied; strengths as in torchvision's transforms.

    Raises:
        UserError: a probability outside [0, 1], or a strength its operation does not know.
    """

    crop_scale: Range = (0.08, 1.0)  # share of the image's area
    crop_ratio: Range = (3 / 4, 4 / 3)  # width / height
    flip_p: float = 0.5
    jitter_p: float = 0.8
    brightness: float = 0.4  # factor in 1 -+ brightness; contrast and saturation likewise
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # shift in turns
    grayscale_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: Range = (0.1, 2.0)  # pixels of the crop
    solarize_p: float = 0.1
    solarize_threshold: int = 128  # inverts the values from here on
    size: int = 0  # side of the crop in pixels; 0: the run's image size

    def __post_init__(self) -> None:
        for name in ("flip_p", "jitter_p", "grayscale_p", "blur_p", "solarize_p"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a probability lies in 0..1")
        for name in ("brightness", "contrast", "saturation"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a strength is 0 or more")
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            self._require(name, 0 < low <= high < math.inf, "a range is (low, high) with 0 < low <= high")
        self._require("crop_scale", self.crop_scale[1] <= 1, "a crop is at most the whole image")
        self._require("hue", 0 <= self.hue <= 0.5, "a hue shift lies in 0..0.5 turns")
        self._require("size", self.size >= 0, "a side has 1 pixel or more, 0 stands for the run's image size")
        self._require("solarize_threshold", 0 <= self.solarize_threshold <= 256, "a threshold lies in 0..256")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise UserError(f"{name} = {getattr(self, name)}: {rule}.")


@dataclass(frozen=True)
class Recipe:
    """A name and one ``ViewRecipe`` for each view."""

    name: str
    views: tuple[ViewRecipe, ...]

    def __post_init__(self) -> None:
        if not self.views:
            raise UserError(f"recipe {self.name!r} has no view; give it at least one ViewRecipe.")


def official() -> Recipe:
    """The official code's (facebookresearch/vicreg): the first view always blurred, the second at times solarized."""
    view = ViewRecipe()
    return Recipe("official", (replace(view, blur_p=1.0, solarize_p=0.0), replace(view, blur_p=0.1, solarize_p=0.2)))


def paper() -> Recipe:
    """The paper's (arXiv 2105.04906): both views alike."""
    return Recipe("paper", (ViewRecipe(), ViewRecipe()))


def small() -> Recipe:
    """For images of about 32 pixels: larger crops and no blur, as solo-learn's VICReg on CIFAR."""
    view = ViewRecipe(crop_scale=(0.2, 1.0), blur_p=0.0)
    return Recipe("small", (view, view))


def multicrop() -> Recipe:
    """SwAV's (facebookresearch/swav, src/multicropdataset.py): two large crops and six small ones of 96 pixels."""
    large = ViewRecipe(
        crop_scale=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, solarize_p=0.0, blur_p=0.5
    )
    return Recipe("multicrop", (*(large,) * 2, *(replace(large, crop_scale=(0.05, 0.14), size=96),) * 6))


def dino() -> Recipe:
    """DINO's (facebookresearch/dino, DataAugmentationDINO): two large crops and eight small ones of 96 pixels."""
    large = ViewRecipe(crop_scale=(0.4, 1.0), blur_p=1.0, solarize_p=0.0)
    small_view = replace(large, crop_scale=(0.05, 0.4), blur_p=0.5, size=96)
    return Recipe("dino", (large, replace(large, blur_p=0.1, solarize_p=0.2), *(small_view,) * 8))


def vicregl() -> Recipe:
    """VICRegL's for a ConvNeXt (facebookresearch/VICRegL, main_vicregl.py's defaults): two large crops, six small."""
    large = official().views
    small_views = tuple(replace(view, crop_scale=(0.08, 0.4), size=96) for view in large)
    return Recipe("vicregl", (*(replace(view, crop_scale=(0.4, 1.0)) for view in large), *small_views * 3))


def moco() -> Recipe:
    """MoCo v2's and SimSiam's (facebookresearch/moco --aug-plus): larger crops, stronger saturation, no solarize."""
    view = ViewRecipe(crop_scale=(0.2, 1.0), saturation=0.4, solarize_p=0.0)
    return Recipe("moco", (view, view))


def simclr() -> Recipe:
    """SimCLR's, SwAV's and solo-learn's (symmetric.yaml): jitter twice VICReg's or more, no solarize."""
    view = ViewRecipe(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, solarize_p=0.0)
    return Recipe("simclr", (view, view))


def solo_asymmetric() -> Recipe:
    """solo-learn's scripts/pretrain/cifar/augmentations/asymmetric.yaml: no blur, solarize 0 and .2."""
    view = ViewRecipe(blur_p=0.0, solarize_p=0.0)
    return Recipe("solo-asymmetric", (view, replace(view, solarize_p=0.2)))


def solo_weak() -> Recipe:
    """solo-learn's symmetric_weak.yaml: MoCo's with crops down to .08 of the image."""
    view = ViewRecipe(saturation=0.4, solarize_p=0.0)
    return Recipe("solo-weak", (view, view))


def solo_wmse() -> Recipe:
    """solo-learn's scripts/pretrain/cifar/wmse.yaml: strong jitter, no blur, crops of at least .2 of the image."""
    view = replace(simclr().views[0], crop_scale=(0.2, 1.0), blur_p=0.0)
    return Recipe("solo-wmse", (view, view))


def supervised() -> Recipe:
    """One view, cut and flipped alone, as classifiers are trained (torchvision's references)."""
    return Recipe("supervised", (ViewRecipe(jitter_p=0.0, grayscale_p=0.0, blur_p=0.0, solarize_p=0.0),))


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "official": official,
    "paper": paper,
    "small": small,
    "moco": moco,
    "simclr": simclr,
    "multicrop": multicrop,
    "dino": dino,
    "vicregl": vicregl,
    "solo-asymmetric": solo_asymmetric,
    "solo-weak": solo_weak,
    "solo-wmse": solo_wmse,
    "supervised": supervised,
}


def named_recipe(name: str, *, small_size: int = 0, num_views: int = 0) -> Recipe:
    """The recipe called ``name``, its small views of ``small_size`` pixels instead of their own size where that is > 0.

    Of ``num_views`` views where that is > 0: the recipe's own, then these again in turn, so that those of an asymmetric
    pair stay as many as each other. What is drawn for a view depends on its place alone: the first ones stay the same.

    ``UserError`` with the nearest name where there is none, for a size where no view is small, and for a number of
    views that is none, or of a recipe that has small ones.
    """
    if name not in RECIPES:
        raise UserError(unknown("recipe", name, RECIPES))
    recipe = RECIPES[name]()
    if num_views:
        recipe = _repeated(recipe, num_views)
    if not small_size:
        return recipe
    if not any(view.size for view in recipe.views):
        raise UserError(
            f"--small-size {small_size}: the recipe {name} has no small views: give --recipe multicrop, dino or "
            "vicregl, or leave it out."
        )
    return replace(recipe, views=tuple(replace(view, size=small_size) if view.size else view for view in recipe.views))


def _repeated(recipe: Recipe, count: int) -> Recipe:
    if not 2 <= count <= MOST_VIEWS:
        raise UserError(f"--num-views {count}: give 2 to {MOST_VIEWS}, or 0 for the recipe's own.")
    if any(view.size for view in recipe.views):
        raise UserError(
            f"--num-views {count}: the recipe {recipe.name} has large and small views, {len(recipe.views)} in all: "
            "give a recipe of one size, or leave it out."
        )
    return replace(recipe, views=tuple(itertools.islice(itertools.cycle(recipe.views), count)))
