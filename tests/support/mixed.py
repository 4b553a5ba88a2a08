"""A folder of images of many kinds, and what a conversion of it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from images import encoded, photo
from PIL import Image

from fastvicreg.pipelines.convert import Settings
from fastvicreg.pipelines.manifest import manifest_path

SMALL = Settings(page_size=1 << 21)
SAMPLES, READABLE = 13, 10


def write_mixed(root: Path) -> Path:
    """Two classes of images of many kinds, three of them unreadable; returns ``root``."""
    rgb, grey = photo(1, 90, 60), photo(2, 50, 40).convert("L")
    noise = np.random.default_rng(0).integers(0, 65536, (30, 20), np.uint16)
    files = {
        "a/baseline.jpg": encoded(rgb),
        "a/broken.jpg": encoded(rgb)[:-700],
        "a/cmyk.jpg": encoded(rgb.convert("CMYK")),
        "a/grey.jpg": encoded(grey),
        "a/no_image.png": b"version https://git-lfs.github.com/spec/v1",
        "a/palette.png": encoded(rgb.convert("P"), "PNG"),
        "a/progressive.jpg": encoded(rgb, progressive=True),
        "b/alpha.png": encoded(rgb.convert("RGBA"), "PNG"),
        "b/empty.jpg": b"",
        "b/large.jpg": encoded(photo(3, 300, 200)),
        "b/rgb.jpg": encoded(rgb, keep_rgb=True),
        "b/sixteen.png": encoded(Image.fromarray(noise), "PNG"),
        "b/tail.jpg": encoded(rgb) + b"appended",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def both(target: Path) -> tuple[bytes, bytes]:
    """The file and its manifest."""
    return target.read_bytes(), manifest_path(target).read_bytes()
