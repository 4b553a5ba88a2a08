"""DALI as its users run it: its own reader, one decode, two random crops and flips; and our engine's decoders swept."""
# pyright: reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastvicreg.contracts import Cursor, Engine, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.profiles.measure import summarize

DEPTH = 2
"""DALI's default of batches under way."""
LOADS = (0.0, 0.3, 0.5, 0.65, 0.8, 1.0)


def own_reader_pass(source: Source, size: int, batch: int, workers: int, *, device: str = "cpu") -> Callable[[], int]:
    """One epoch of ``source``'s bytes, written as files once: two random crops and flips an image, uint8, full batches.

    Bicubic, as the views of VICReg are. With ``device`` "cuda" the GPU decodes. ``UserError`` where DALI is not here.
    """
    try:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import pipeline_def
    except ImportError as error:
        raise UserError(
            f"DALI's own row needs DALI, which does not import ({error}): see fastvicreg doctor."
        ) from error

    folder = tempfile.TemporaryDirectory(prefix="fastvicreg-dali-")
    classes = Path(folder.name) / "0"
    classes.mkdir()
    for index in range(len(source)):
        (classes / f"{index:08d}.jpg").write_bytes(source.encoded(index))
    on_gpu = device.startswith("cuda")

    @pipeline_def(
        batch_size=batch,
        num_threads=workers,
        device_id=0 if on_gpu else None,
        prefetch_queue_depth=DEPTH,
        exec_dynamic=True,
    )
    def two_views() -> tuple[Any, ...]:
        encoded, label = fn.readers.file(file_root=folder.name, random_shuffle=True, name="reader")
        image = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        views = [
            fn.flip(
                fn.random_resized_crop(image, size=size, random_area=[0.08, 1.0], interp_type=types.INTERP_CUBIC),
                horizontal=fn.random.coin_flip(),
            )
            for _ in range(2)
        ]
        return *views, label

    pipeline: Any = two_views()
    pipeline.build()

    def one_pass() -> int:
        # Not pipeline.run(), which leaves batches under way: their work would be timed with another row's.
        batches = len(source) // batch
        started = taken = 0
        while taken < batches:
            while started < min(batches, taken + DEPTH):
                pipeline._run_once()
                started += 1
            pipeline.share_outputs()
            pipeline.release_outputs()
            taken += 1
        if on_gpu:
            torch.cuda.synchronize()
        return taken * batch

    weakref.finalize(one_pass, folder.cleanup)
    return one_pass


def decoder_rows(
    source: Source, *, size: int = 224, batch: int = 256, threads: Sequence[int] = (4, 8, 16), repeats: int = 5
) -> list[dict[str, Any]]:
    """Our engine decoding on the CPU and on the GPU at several hardware loads and threads, and the peer on the GPU.

    Rows: ``decoder``, ``hw_decoder_load`` (None on the CPU), ``threads``, ``images_per_s``, ``spread``, ``n``, and
    ``gpu_bytes``, what all the process's work holds of the GPU's memory beyond what was in use before the row. Crops
    decoded on the CPU are timed until they are on the GPU. No rows where torch finds no CUDA device.
    """
    if not torch.cuda.is_available():
        return []
    settings = [("cpu", None, count) for count in threads]
    settings += [("mixed", load, count) for count in threads for load in LOADS]
    settings += [("dali-own-reader", None, count) for count in threads]
    rows = []
    for decoder, load, count in settings:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        engine: Engine | None = None
        if decoder == "dali-own-reader":
            one_pass = own_reader_pass(source, size, batch, count, device="cuda")
        else:
            engine, one_pass = _engine_pass(source, size, batch, count, decoder, load)
        rates, least = [], free
        for repeat in range(repeats + 1):
            began = time.perf_counter()
            images = one_pass()
            if repeat:  # the first one builds and allocates
                rates.append(images / (time.perf_counter() - began))
            least = min(least, torch.cuda.mem_get_info()[0])
        if engine is not None:
            engine.close()
        summary = summarize(rates)
        rows.append(
            {
                "decoder": decoder,
                "hw_decoder_load": load,
                "threads": count,
                "images_per_s": summary.ms,
                "spread": summary.spread,
                "n": summary.n,
                "gpu_bytes": free - least,
            }
        )
        del one_pass, engine  # DALI keeps the memory of a pipeline for as long as it lives
    return rows


def _engine_pass(
    source: Source, size: int, batch: int, threads: int, decoder: str, load: float | None
) -> tuple[Engine, Callable[[], int]]:
    plan = train_plan(len(source), seed=0, recipe=named_recipe("official"), image_size=size)
    options: dict[str, Any] = {"decoder": decoder} | ({} if load is None else {"hw_decoder_load": load})
    engine = build_engine("dali", source, plan, batch_size=batch, workers=threads, device="cuda", **options)

    def one_pass() -> int:
        images = 0
        for crops in engine.batches(Cursor(0, 0)):
            crops.crops_BVHWC.to("cuda", non_blocking=True)
            images += len(crops.slot_B)
        torch.cuda.synchronize()
        return images

    return engine, one_pass
