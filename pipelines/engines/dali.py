"""The dali engine: DALI decodes each stored image once, on the CPU or the GPU, and cuts all its views at our boxes.

Order, boxes and flips are the native engine's; pixels differ by DALI's resize and decoder. A sample that is not plainly
good is left to the host's path, as native takes it: in DALI it could end the pipeline, or the process. DALI takes a
JPEG that is damaged in the middle as it is, where native replaces it: only a manifest's hash tells.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.pipelines.engines.dali_samples import Job, Samples
from fastvicreg.pipelines.engines.dali_thread import Watched
from fastvicreg.pipelines.engines.data import require_format
from fastvicreg.pipelines.engines.engine import Delivery
from fastvicreg.pipelines.engines.host import HostCutter
from fastvicreg.pipelines.engines.options import Decoder
from fastvicreg.pipelines.engines.workload import Epoch, Workload
from fastvicreg.pipelines.faults import Replaced

if TYPE_CHECKING:
    from fastvicreg.pipelines.engines.dali_graph import Graph

DEPTH = 2
"""Batches that DALI works on at most: its images do not fit into the processor's caches as it is."""

log = logging.getLogger(__name__)


class DALIBackend:
    """Reads a ``.beton`` or shards with DALI installed; ``decoder`` auto is "mixed" where ``device`` is CUDA.

    With "mixed" JPEGs go to the GPU encoded, and the crops lie there. Beside the batch in use ``prefetch`` + 1 more are
    under way. On the GPU a batch may be read by what the consumer's stream holds when it asks for the next one; to
    keep it longer, use ``record_stream``.
    """

    def __init__(self, work: Workload) -> None:
        """``UserError`` where the source holds no encoded images of its own, DALI or the GPU asked for is not here,
        the plan is an evaluation's, or ``resample`` names an implementation.
        """
        options = work.options
        self._source = require_format("dali", work.source, "shards", "beton")
        if work.plan.support != "crop":
            raise UserError("--pipeline dali cuts training views only: evaluate with --pipeline native.")
        if options.resample != "auto":
            raise UserError(
                f"--kernel resample={options.resample}: the dali pipeline cuts with DALI's own resize; leave it out."
            )
        self._device = _decoding_device(options.decoder, options.device)
        _require_dali()
        self._work = work
        self._depth = min(options.prefetch, DEPTH)
        self._stream = None if self._device is None else torch.cuda.Stream(self._device)
        self._cutter = HostCutter(work)
        self._samples = Samples(self._source, work.plan)
        if self._source.expected_hash(0) is None:
            log.warning(
                "the data has no manifest: dali trains on JPEGs damaged in the middle as they are; fastvicreg verify "
                "--decode finds them, fastvicreg convert adds a manifest."
            )
        self._graph: Graph | None = None
        self._sides: tuple[int, ...] = ()

    def close(self) -> None:
        self._graph = None

    def deliver(self, epoch: Epoch) -> Generator[Delivery, None, None]:
        """See ``Backend.deliver``; ``RuntimeError``: DALI fails for no sample's sake; ``StalledError``: it hangs."""
        running = Watched(
            self._deliveries(epoch), "dali", max(1, self._work.options.prefetch - self._depth), self._work.options.stall
        )
        try:
            for delivery in running:
                try:
                    yield delivery
                finally:  # of an epoch that is left early too: the next one's batches come into the same memory
                    if self._stream is not None:
                        # The batch is still held here: its memory serves another only once the consumer has read it.
                        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        finally:
            if not running.close():
                self._graph = None  # it hangs: its thread is left to itself

    def _deliveries(self, epoch: Epoch) -> Generator[Delivery, None, None]:
        """What ``deliver`` gives, with up to ``DEPTH`` batches submitted to DALI; runs in a thread of its own."""
        from fastvicreg.pipelines.engines.dali_graph import GraphError

        if self._device is not None:
            torch.cuda.set_device(self._device)  # a thread begins on device 0, and would open a context there
        ahead = iter(epoch.batches)
        pending: deque[Job] = deque()
        submitted = 0  # of ``pending``, the first ones
        sides = tuple(group.side for group in epoch.groups for _ in range(group.count))
        graph = self._opened(sides)
        try:
            while True:
                while len(pending) < self._depth and (batch := next(ahead, None)) is not None:
                    self._work.read_ahead(epoch.slots(batch + self._depth))  # a job checks its samples: it reads them
                    pending.append(self._samples.job(epoch.cursor(batch), epoch.slots(batch)))
                if not pending:
                    return
                try:
                    for job in list(pending)[submitted:]:
                        _submit(graph, job)
                        submitted += 1
                    views = _take(graph, pending[0], self._stream)
                except GraphError as error:
                    self._graph = None
                    self._isolate(list(pending), sides, error)
                    pending = deque(self._samples.job(job.cursor, job.slot_B) for job in pending)
                    graph, submitted = self._opened(sides), 0
                    continue
                submitted -= 1
                yield self._deliver(pending.popleft(), views)
        finally:
            if submitted:  # an epoch left early: what is under way would be taken for the next epoch's
                self._graph = None

    def _deliver(self, job: Job, views: list[Tensor]) -> Delivery:
        on_gpu = self._device is not None
        with torch.cuda.stream(self._stream):
            crops = self._work.empty(job.cursor, job.slot_B, gpu=self._device)
            # Pages that nothing is written to take no memory.
            out = [np.empty(group.shape, np.uint8) if on_gpu else group.numpy() for group in crops.groups]
            for view_BHWC, view_PHWC in zip(crops.views, views, strict=False):  # none where no sample is DALI's
                if on_gpu:
                    _place(view_BHWC, job, view_PHWC)
                else:
                    _place(view_BHWC.numpy(), job, view_PHWC.numpy())
            if crops.places_BV5 is not None:
                crops.places_BV5[torch.from_numpy(job.place_P)] = job.request.places()
            replaced: list[Replaced] = []
            for at in np.setdiff1d(np.arange(len(job.slot_B)), job.place_P).tolist():
                replaced += self._cutter.fill(crops, out, at, at + 1)
                for group_BVHWC, host_BVHWC in zip(crops.groups if on_gpu else (), out, strict=False):
                    group_BVHWC[at].copy_(torch.from_numpy(host_BVHWC[at]))
        if self._stream is not None:
            self._stream.synchronize()  # whatever stream reads the batch, it is there
        return crops, replaced

    def _isolate(self, jobs: list[Job], sides: tuple[int, ...], error: Exception) -> None:
        """Find what ended the graph and keep it from the next; ``RuntimeError`` where it is none of the samples."""
        guilty: list[int] = []
        for job in jobs:
            guilty = self._samples.damaged(job, self._work.options.threads) or self._refused_alone(job, sides)
            if guilty:
                break
        else:
            raise RuntimeError(
                f"the dali pipeline failed at batch {jobs[0].cursor.batch} of epoch {jobs[0].cursor.epoch}, and no "
                f"sample is at fault: {error}; --pipeline native reads the same data."
            ) from error
        self._samples.refuse(guilty)
        names = ", ".join(self._source.name(slot) for slot in guilty[:5])
        log.warning("dali could not decode a batch (%s): begun again without %d of its samples: %s.",
                    error, len(guilty), names)  # fmt: skip

    def _refused_alone(self, job: Job, sides: tuple[int, ...]) -> list[int]:
        """The samples that DALI refuses, each tried in a batch of its own."""
        from fastvicreg.pipelines.engines.dali_graph import GraphError

        refused = []
        graph = self._opened(sides)
        for at, slot in enumerate(job.slot_B[job.place_P].tolist()):
            alone = job._replace(place_P=job.place_P[at : at + 1], request=job.request.part(at))
            try:
                _submit(graph, alone)
                _take(graph, alone, self._stream)
            except GraphError:
                refused.append(slot)
                self._graph = None
                graph = self._opened(sides)
        return refused

    def _opened(self, sides: tuple[int, ...]) -> Graph:
        """The graph for views of these sizes, kept from epoch to epoch."""
        from fastvicreg.pipelines.engines.dali_graph import Graph, Shape

        if self._graph is None or self._sides != sides:
            batching, options = self._work.batching, self._work.options
            share = -(-batching.batch_size // batching.world_size)
            self._graph = Graph(
                Shape(
                    batch=share,
                    sides=sides,
                    threads=options.threads,
                    depth=self._depth,
                    device_id=self._device,
                    hw_decoder_load=options.hw_decoder_load,
                )
            )
            self._sides = sides
        return self._graph


def _submit(graph: Graph, job: Job) -> None:
    if len(job.place_P):
        graph.submit(job.request)


def _take(graph: Graph, job: Job, stream: torch.cuda.Stream | None) -> list[Tensor]:
    """The views of ``job``; none where it has no sample for DALI."""
    return graph.take(stream) if len(job.place_P) else []


def _place(out_BHWC: np.ndarray | Tensor, job: Job, view_PHWC: np.ndarray | Tensor) -> None:
    whole = len(job.place_P) == len(job.slot_B)
    out_BHWC[slice(None) if whole else job.place_P] = view_PHWC  # type: ignore[index,assignment]


def _decoding_device(decoder: Decoder, device: str) -> int | None:
    """The GPU to decode on, None for the CPU; ``UserError`` where the GPU asked for is not here or not the run's."""
    on_gpu = device.startswith("cuda")
    if decoder not in ("auto", "cpu", "mixed"):
        raise UserError(f"--decoder {decoder} is not known: give auto, cpu or mixed.")
    if decoder == "cpu" or (decoder == "auto" and not on_gpu):
        return None
    if not torch.cuda.is_available():
        raise UserError(
            f"--pipeline dali --decoder {decoder} --device {device} decodes on a GPU, and torch {torch.__version__} "
            "finds no CUDA device here: give --decoder cpu --device cpu."
        )
    if not on_gpu:
        raise UserError(f"--decoder mixed leaves the crops on the GPU, and the run is on {device}: give --device cuda.")
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


def _require_dali() -> None:
    try:
        import fastvicreg.pipelines.engines.dali_graph  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--pipeline dali needs NVIDIA DALI, which does not import ({error}): pip install nvidia-dali-cuda130; "
            "--pipeline native reads the same data."
        ) from error
