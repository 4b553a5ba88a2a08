"""Engines by name; a backend is imported when it is chosen."""

from __future__ import annotations

from fastvicreg.contracts import Engine, Plan, Source
from fastvicreg.errors import at_least
from fastvicreg.pipelines.engines.batching import Batching
from fastvicreg.pipelines.engines.engine import BatchEngine
from fastvicreg.pipelines.engines.options import Decoder, EngineOptions
from fastvicreg.pipelines.engines.workload import Workload
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.pairs.source import PairedSource
from fastvicreg.registry import resolve
from fastvicreg.stalls import LIMIT

ENGINES = {
    "dali": "fastvicreg.pipelines.engines.dali:DALIBackend",
    "ffcv": "fastvicreg.pipelines.engines.ffcv:FFCVBackend",
    "native": "fastvicreg.pipelines.engines.native:NativeBackend",
    "synthetic": "fastvicreg.pipelines.engines.synthetic:SyntheticBackend",
}
"""Names to ``engine.Backend`` classes, which take a ``Workload``."""


def build_engine(
    name: str,
    source: Source,
    plan: Plan,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    prefetch: int = 3,
    device: str = "cpu",
    budget: FaultBudget | None = None,
    resample: str = "auto",
    decoder: Decoder = "auto",
    hw_decoder_load: float = 0.65,
    stall: float = LIMIT,
    places: bool = False,
) -> Engine:
    """The engine called ``name`` over ``source`` and ``plan``; of pairs it cuts the images, and the rest is added.

    ``batch_size`` is the total over all ranks; ``decoder`` and ``hw_decoder_load`` are the dali engine's.
    ``stall`` is how many seconds a batch is waited for without a result (``StalledError``). ``places`` fills
    ``Crops.places_BV5``.
    ``UserError`` for an unknown name, a batch larger than the data or that does not divide among the ranks, or fewer
    than 0 ``workers`` or 1 ``prefetch``.
    """
    build = resolve("pipeline", name, ENGINES)
    at_least({"--workers": (workers, 0), "--prefetch": (prefetch, 1)})
    batching = Batching(len(source), batch_size, plan.drop_last, rank, world_size)
    options = EngineOptions(workers, prefetch, device, budget, resample, decoder, hw_decoder_load, stall, places)
    if isinstance(source, PairedSource):
        from fastvicreg.pipelines.pairs.backend import PairedBackend, images_of  # it imports parts of this package

        work = Workload(source.images or source, plan, batching, options)
        return BatchEngine(work, PairedBackend(work, source, images_of(name, build, work, source)))
    work = Workload(source, plan, batching, options)
    return BatchEngine(work, build(work))
