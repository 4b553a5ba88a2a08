"""DALI's graph: each image decoded once, all its views cut from it; the only file of the engine that imports DALI.

P samples handed to DALI, V views. Written against DALI 2.4.
"""
# pyright: reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from torch import Tensor

from fastvicreg.pipelines.engines.dali_samples import Request

CHANNELS_2 = np.array([1, 3], np.int32)
"""What an axis of pixels is in bytes: rows, columns. On the GPU regions are cut as rows of bytes."""


class GraphError(RuntimeError):
    """DALI has refused a batch; the graph is of no further use."""


@dataclass(frozen=True)
class Shape:
    """What a graph is built for; ``device_id`` None decodes and cuts on the CPU, with no driver needed."""

    batch: int  # samples at most
    sides: tuple[int, ...]  # of the views
    threads: int
    depth: int  # batches under way
    device_id: int | None = None
    hw_decoder_load: float = 0.65


class Graph:
    """A built DALI pipeline: up to ``shape.depth`` batches are submitted ahead of the one that is taken."""

    def __init__(self, shape: Shape) -> None:
        """``GraphError`` where DALI cannot build or run it here."""
        self._shape = shape
        self._ahead: deque[Request] = deque()
        # schedule_run() runs ``depth`` batches at its first call: these are not the caller's.
        image = np.frombuffer(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)), np.uint8)
        start_PV2, flip_PV = np.zeros((1, len(shape.sides), 2), np.int32), np.zeros((1, len(shape.sides)), np.int32)
        try:
            self._pipeline: Any = _define(shape)
            for _ in range(shape.depth):
                self._feed(Request([image], start_PV2, start_PV2 + 8, flip_PV))
            self._pipeline.schedule_run()
        except RuntimeError as error:
            raise GraphError(_gist(error)) from error
        for _ in range(shape.depth):
            self.take()

    def submit(self, request: Request) -> None:
        """Start a batch of at least one sample; ``GraphError`` where the graph has failed."""
        try:
            self._feed(request)
            self._pipeline.schedule_run()
        except RuntimeError as error:
            raise GraphError(_gist(error)) from error

    def take(self, stream: torch.cuda.Stream | None = None) -> list[Tensor]:
        """Wait for the batch submitted first: V tensors (P, side, side, 3), uint8.

        They lie in DALI's memory, freed with the last use; on the GPU they are written, and their memory freed, in the
        order of ``stream``.
        """
        try:
            outputs = self._pipeline.share_outputs(cuda_stream=stream)
            with torch.cuda.stream(stream):
                views = [torch.from_dlpack(output.as_tensor()) for output in outputs]
            self._pipeline.release_outputs()
        except RuntimeError as error:
            raise GraphError(_gist(error)) from error
        self._ahead.popleft()
        return views

    def _feed(self, request: Request) -> None:
        def feed(name: str, array: NDArray[np.int32]) -> None:
            self._pipeline.feed_input(name, np.ascontiguousarray(array))

        self._ahead.append(request)
        self._pipeline.feed_input("encoded", request.encoded_P)
        start_PV2, size_PV2 = request.start_PV2, request.size_PV2
        if self._shape.device_id is not None:
            start_PV2, size_PV2 = start_PV2 * CHANNELS_2, size_PV2 * CHANNELS_2
        else:
            first_P2 = start_PV2.min(1)
            feed("first", first_P2)
            feed("extent", (start_PV2 + size_PV2).max(1) - first_P2)
            start_PV2 = start_PV2 - first_P2[:, None]
        for v in range(len(self._shape.sides)):
            feed(f"start{v}", start_PV2[:, v])
            feed(f"size{v}", size_PV2[:, v])
            feed(f"flip{v}", request.flip_PV[:, v])


def _define(shape: Shape) -> Any:
    """The pipeline, built; V outputs, uint8, HWC."""
    on_gpu = shape.device_id is not None

    def external(name: str, ndim: int) -> Any:
        return fn.external_source(name=name, batch=True, dtype=types.INT32, ndim=ndim)

    @pipeline_def(
        batch_size=shape.batch,
        num_threads=shape.threads,
        device_id=shape.device_id,
        prefetch_queue_depth=shape.depth,
        exec_dynamic=True,
    )
    def views() -> tuple[Any, ...]:
        encoded = fn.external_source(name="encoded", batch=True, no_copy=True, dtype=types.UINT8, ndim=1)
        colours = {"output_type": types.RGB, "adjust_orientation": False}
        if on_gpu:
            image = fn.decoders.image(
                encoded,
                device="mixed",
                hw_decoder_load=shape.hw_decoder_load,
                jpeg_fancy_upsampling=True,  # chroma as libjpeg-turbo has it on the CPU
                affine=False,  # else the threads of several ranks are tied to the same first cores
                **colours,
            )
            # As rows of bytes: slice copies a region of two axes faster than one of three.
            image = fn.reshape(image, src_dims=[0, 1], rel_shape=[1, 3], layout="HW")
        else:  # no more than all the views need: 4 % more images a processor second
            first, extent = (external(name, 1) for name in ("first", "extent"))
            image = fn.decoders.image_slice(encoded, start=first, shape=extent, axes=[0, 1], device="cpu", **colours)
        cut = []
        for v, side in enumerate(shape.sides):
            start, size, flip = external(f"start{v}", 1), external(f"size{v}", 1), external(f"flip{v}", 0)
            # A resize of a region reads the pixels around it too, at the crop's edge up to 44 of 255 away from ours.
            crop = _region_of_bytes(image, start, size) if on_gpu else _region(image, start, size)
            cut.append(
                fn.resize_crop_mirror(
                    crop, size=[side] * 2, mirror=flip, interp_type=types.INTERP_CUBIC, antialias=True
                )
            )
        return tuple(cut)

    pipeline = views()
    pipeline.build()
    return pipeline


def _gist(error: RuntimeError) -> str:
    """What DALI says, on one line, without its graph's own traceback and C++ context."""
    lines = [line.strip() for line in str(error).splitlines()]
    if "encountered:" in lines:
        lines = lines[lines.index("encountered:") + 1 :]
    noise = ("C++ context", "Current pipeline object", "Stacktrace", "[frame", "Critical error")
    return " ".join(line for line in lines if line and not line.startswith(noise))[:300]


def _region(image: Any, start: Any, size: Any) -> Any:
    """A copy of a rectangle on the CPU, row by row as it lies there; ``slice`` takes longer for it."""
    one: dict[str, Any] = {"in_anchors": fn.reshape(start, shape=[1, 2]), "shapes": fn.reshape(size, shape=[1, 2])}
    return fn.multi_paste(image, output_size=size, **one)


def _region_of_bytes(image: Any, start: Any, size: Any) -> Any:
    """The same of an image whose rows are bytes."""
    crop = fn.slice(image, start, size, axes=[0, 1])
    return fn.reshape(crop, src_dims=[0, 1, -1], rel_shape=[1, -1, 3], layout="HWC")
