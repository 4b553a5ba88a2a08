"""DALI as its users run it: its own reader, one decode, two random crops and flips."""
# pyright: reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError

DEPTH = 2
"""DALI's default of batches under way."""


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
