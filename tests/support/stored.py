"""What the tests of the engines over converted data share: images of many kinds, a plan, and an epoch taken whole."""

from __future__ import annotations

from pathlib import Path

from images import encoded, photo

from fastvicreg.contracts import Crops, Cursor, Engine, Plan
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.manifest import manifest_path
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe

SIZES = [(60, 45), (45, 60), (33, 90), (200, 31), (1, 1), (7, 5), (300, 1), (97, 97), (250, 180), (64, 64)]


def write_images(root: Path) -> Path:
    """Two classes of JPEGs of every subsampling, baseline and progressive, RGB and grey, from 1 pixel on; two PNGs."""
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        image = photo(number, width, height)
        kind = {"quality": 90, "progressive": number % 3 == 0, "subsampling": number % 3}
        (root / "a" / f"{number:02d}.jpg").write_bytes(encoded(image, **kind))
        (root / "b" / f"{number:02d}.jpg").write_bytes(encoded(image.convert("L"), quality=80))
    for number in (4, 9):
        (root / "b" / f"{number:02d}.png").write_bytes(encoded(photo(number, 40, 30), "PNG"))
    return root


def unchecked(beton: Path) -> Path:
    """The same file without its manifest, so that a test may alter it."""
    manifest_path(beton).unlink()
    return beton


def damage(beton: Path, sample: int, at: float, data: bytes) -> None:
    """Overwrite a sample's bytes from the share ``at`` of its length on."""
    source = BetonSource(beton)
    start, size = int(source.layout.image_N["data_ptr"][sample]), len(source.stored(sample))
    with beton.open("r+b") as file:
        file.seek(start + int(at * size))
        file.write(data[: size - int(at * size)])


def training(samples: int, size: int = 32) -> Plan:
    """A training plan of two views."""
    return train_plan(samples, seed=3, recipe=named_recipe("official"), image_size=size)


def multicrop(samples: int, sizes: tuple[int, ...] = (40,), epochs: int = 1) -> Plan:
    """Two large views and six small ones of 24 pixels; the large ones of each of ``sizes`` in turn."""
    recipe = named_recipe("multicrop", small_size=24)
    return train_plan(samples, seed=3, recipe=recipe, image_size=sizes, epochs=epochs)


def epoch_of(engine: Engine, start: Cursor) -> list[Crops]:
    """The batches from ``start`` to the epoch's end; the engine is closed."""
    try:
        return list(engine.batches(start))
    finally:
        engine.close()
