"""Real images without a download: patches of the photographs inside scikit-image's wheel, written as image files.

Each photograph is a class. It is cut into disjoint tiles; whole tiles go to training or to testing, so that no pixel
is seen in both. Patches are grey and of one mean and contrast: else a photograph's colour, brightness or contrast would
name it, and there would be nothing to learn.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fastvicreg.caches import cache_folder
from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings

PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
TILE = 64
PATCH = 32
TRAIN, TEST = 4096, 1024
MEAN, STD = 128.0, 48.0
"""Grey values that every patch is brought to, as far as 0 to 255 hold it."""
FLAT = 1.0
"""Standard deviation below which a patch is stretched no further: noise is no texture."""
VERSION = 2


def write_once(root: Path | None = None) -> Path:
    """The folder with train/ and test/ class folders of PNG files, written on the first call.

    ``UserError`` where the cache cannot be written or scikit-image lacks its images.
    """
    return _once((root or cache_folder()) / f"embedded-{VERSION}", _write)


def write_beton_once(root: Path | None = None) -> Path:
    """The same images as train.beton and test.beton in a folder, pixels unchanged; converted on the first call."""
    return _converted(root, "ffcv", ".beton", Settings(raw=True))


def write_shards_once(root: Path | None = None) -> Path:
    """The same images as shards in train/ and test/, encoded as JPEG; converted on the first call."""
    return _converted(root, "dali", "", Settings(format="dali", quality=95))


def _converted(root: Path | None, pipeline: str, ending: str, settings: Settings) -> Path:
    images = write_once(root)

    def convert(folder: Path) -> None:
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            convert_dataset(images / split, folder / f"{split}{ending}", settings)

    return _once(images.with_name(f"{images.name}-{pipeline}"), convert)


def _once(folder: Path, write: Callable[[Path], None]) -> Path:
    """``folder``, which ``write`` fills under another name first: whole, or not there."""
    if folder.is_dir():
        return folder
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        write(draft)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have been first
                raise
            shutil.rmtree(draft)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(f"cannot write the embedded images to {folder}: {error}; set XDG_CACHE_HOME.") from error
    return folder


def places(photograph: int, height: int, width: int) -> dict[str, list[tuple[int, int]]]:
    """(top, left) in pixels of every patch of one photograph, by split: tiles are drawn first, patches within them."""
    rng = np.random.default_rng([VERSION, photograph])
    tiles = [(y, x) for y in range(0, height - TILE + 1, TILE) for x in range(0, width - TILE + 1, TILE)]
    rng.shuffle(tiles)
    held_out = max(1, len(tiles) // 5)
    found = {}
    for split, own, total in (("test", tiles[:held_out], TEST), ("train", tiles[held_out:], TRAIN)):
        count = total // len(PHOTOGRAPHS) + (photograph < total % len(PHOTOGRAPHS))
        shifts = rng.integers(0, TILE - PATCH + 1, (count, 2)).tolist()
        found[split] = [(y + dy, x + dx) for (y, x), (dy, dx) in zip(itertools.cycle(own), shifts, strict=False)]
    return found


def patch(pixels_HW: np.ndarray, top: int, left: int) -> Image.Image:
    """The patch whose upper left corner is at (top, left), brought to one mean and standard deviation."""
    own = pixels_HW[top : top + PATCH, left : left + PATCH].astype(np.float64)
    stretched = (own - own.mean()) * (STD / max(own.std(), FLAT)) + MEAN
    return Image.fromarray(stretched.round().clip(0, 255).astype(np.uint8))


def photograph_pixels(file: str) -> np.ndarray:
    """One of ``PHOTOGRAPHS`` as grey values, (H, W) uint8."""
    import skimage

    return np.asarray(Image.open(Path(skimage.__file__).parent / "data" / file).convert("L"))


def _write(folder: Path) -> None:
    for number, file in enumerate(PHOTOGRAPHS):
        pixels_HW = photograph_pixels(file)
        for split, corners in places(number, *pixels_HW.shape).items():
            target = folder / split / Path(file).stem
            target.mkdir(parents=True)
            for index, (top, left) in enumerate(corners):
                patch(pixels_HW, top, left).save(target / f"{index:04d}.png")
