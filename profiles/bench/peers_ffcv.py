"""FFCV as its users run it: its own Loader, a pipeline a view, so that each image is decoded twice."""
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastvicreg.errors import UserError


def ffcv_as_shipped_pass(path: str | Path, size: int, batch: int, workers: int) -> Callable[[], int]:
    """One epoch of a ``.beton`` with the fields "image" and "label": two random crops and flips an image, uint8.

    ``UserError`` where FFCV is not installed.
    """
    threads = torch.get_num_threads()
    try:
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.pipeline.pipeline_spec import PipelineSpec
        from ffcv.transforms import RandomHorizontalFlip, ToTensor

        from fastvicreg.pipelines.engines.ffcv_loader import mend_ffcv
    except ImportError as error:
        raise UserError(
            f"FFCV's own rows need FFCV, which does not import ({error}): see fastvicreg doctor."
        ) from error

    def view() -> dict[str, Any]:
        return {
            "decoder": RandomResizedCropRGBImageDecoder((size, size)),
            "transforms": [RandomHorizontalFlip(), ToTensor()],
        }

    pipelines: Any = {
        "image": PipelineSpec("image", **view()),
        "other_view": PipelineSpec("image", **view()),
        "label": [IntDecoder(), ToTensor()],
    }
    mend_ffcv()
    loader = Loader(
        str(path),
        batch_size=batch,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines=pipelines,
    )
    torch.set_num_threads(threads)

    def one_pass() -> int:
        # FFCV sets torch's threads to its workers: given back, or the rows after this one would run with others.
        threads = torch.get_num_threads()
        try:
            return sum(len(label) for _, label, _ in loader)
        finally:
            torch.set_num_threads(threads)

    return one_pass
