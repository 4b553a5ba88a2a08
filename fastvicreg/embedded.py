"""Real images without a download: patches of the photographs inside scikit-image's wheel, written as image files.

Each photograph is a class. It is cut into disjoint tiles; whole tiles go to training or to testing, so that no pixel
is seen in both. Patches are grey: with colour, a photograph's mean alone would name it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from platformdirs import user_cache_path

from fastvicreg.errors import UserError

PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
TILE = 64
PATCH = 32
TRAIN, TEST = 4096, 1024
VERSION = 1


def write_once(root: Path | None = None) -> Path:
    """The folder with train/ and test/ class folders of PNG files, written on the first call.

    ``UserError`` where the cache cannot be written or scikit-image lacks its images.
    """
    folder = (root or user_cache_path("fastvicreg")) / f"embedded-{VERSION}"
    if folder.is_dir():
        return folder
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        _write(draft)
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


def _write(folder: Path) -> None:
    import skimage

    photographs = Path(skimage.__file__).parent / "data"
    for number, file in enumerate(PHOTOGRAPHS):
        pixels = np.asarray(Image.open(photographs / file).convert("L"))
        rng = np.random.default_rng([VERSION, number])
        corners = [
            (y, x)
            for y in range(0, pixels.shape[0] - TILE + 1, TILE)
            for x in range(0, pixels.shape[1] - TILE + 1, TILE)
        ]
        rng.shuffle(corners)
        held_out = max(1, len(corners) // 5)
        for split, tiles, total in (("test", corners[:held_out], TEST), ("train", corners[held_out:], TRAIN)):
            target = folder / split / Path(file).stem
            target.mkdir(parents=True)
            count = total // len(PHOTOGRAPHS) + (number < total % len(PHOTOGRAPHS))
            for patch in range(count):
                y, x = tiles[patch % len(tiles)] + rng.integers(0, TILE - PATCH + 1, 2)
                Image.fromarray(pixels[y : y + PATCH, x : x + PATCH]).save(target / f"{patch:04d}.png")
