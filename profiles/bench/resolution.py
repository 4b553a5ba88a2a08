"""What views of each size of ``--resolution`` cost the processor, by engine and by the form that the images have.

Of a JPEG most of the time goes into its entropy-coded bits, which are read whole whatever is cut of the image; of
pixels all that costs is cutting and resampling, which grow with the views.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvicreg.config import DataConfig
from fastvicreg.contracts import Source
from fastvicreg.demo import embedded
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.profiles.bench.loader import cpu_seconds, engine_pass, installed, mean_bytes
from fastvicreg.profiles.bench.registry import Benchmark, Options
from fastvicreg.profiles.measure import alternating, summarize
from fastvicreg.threads import one_thread

COLUMNS = ("form", "pipeline", "size", "images_per_cpu_s", "spread", "n", "vs_largest", "mean_bytes")

FORMS: dict[str, Settings] = {
    "original bytes": Settings(),
    "400 px, q90": Settings(max_size=400, reencode=True),
    "256 px, pixels": Settings(max_size=256, raw=True),
}
"""Of a ``.beton``, from what keeps everything to what takes no decoding."""
ENGINES = {"native": None, "ffcv": ("ffcv", "FFCV"), "dali": ("nvidia.dali", "DALI")}
"""Pipelines, with the module that each needs and its name."""

Key = tuple[str, str, int]
"""Form, pipeline, size."""


def run(
    data: str | Path | None = None, *, resolution: str = "128:192:224", batch: int = 50, repeats: int = 5, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows by form, pipeline and size: source images a CPU-second, each giving two views; one thread, in turns.

    ``vs_largest`` is beside the same form and pipeline at the largest size of ``resolution``, round by round.
    ``UserError`` where ``resolution`` is none.
    """
    sizes = DataConfig(resolution=resolution).training_sizes()
    engines = [name for name, needs in ENGINES.items() if needs is None or installed(*needs)]
    with tempfile.TemporaryDirectory() as folder:
        path = data or embedded.write_once() / "train"
        sources = {
            form: open_source(convert_dataset(path, Path(folder) / f"{number}.beton", settings).path)
            for number, (form, settings) in enumerate(FORMS.items())
        }
        passes: dict[Key, Callable[[], int]] = {
            (form, engine, size): engine_pass(source, engine, size, min(batch, len(source)), 1, seed)
            for form, source in sources.items()
            for engine in engines
            for size in sizes
        }
        rates: dict[Key, list[float]] = {key: [] for key in passes}
        with one_thread():
            for repeat in range(repeats + 1):
                for key in alternating(passes, repeat):
                    before = cpu_seconds()
                    images = passes[key]()
                    if repeat:  # the first round warms caches and compiles
                        rates[key].append(images / max(cpu_seconds() - before, 1e-9))
        return _rows(rates, max(sizes), sources)


def _rows(rates: Mapping[Key, list[float]], largest: int, sources: Mapping[str, Source]) -> list[dict[str, Any]]:
    rows = []
    for (form, engine, size), values in rates.items():
        rate = summarize(values)
        beside = [one / other for one, other in zip(values, rates[form, engine, largest], strict=True)]
        rows.append(
            {
                "form": form,
                "pipeline": engine,
                "size": size,
                "images_per_cpu_s": rate.ms,
                "spread": rate.spread,
                "n": rate.n,
                "vs_largest": summarize(beside).ms,
                "mean_bytes": mean_bytes(sources[form]),
            }
        )
    return rows


@dataclass(frozen=True)
class BenchOptions(Options):
    """Views of each size of --resolution by every pipeline, of images stored in several forms."""

    data: str | None = None
    """Folder of images or of shards, or a .beton; default: the embedded ones."""

    resolution: str = "128:192:224"
    """Sides of the views, as train's --resolution."""


BENCHMARK = Benchmark(
    run,
    COLUMNS,
    key=("form", "pipeline", "size"),
    figure="images_per_cpu_s",
    better="higher",
    options=BenchOptions,
)
