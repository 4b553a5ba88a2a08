"""The dali engine: DALI decodes each stored image once, on the CPU or the GPU, and cuts all its views at our boxes.

Order, boxes and flips are the native engine's; pixels differ by DALI's resize and decoder. A sample that is not plainly
good is left to native's path: in DALI it could end the pipeline, or the process. DALI takes a JPEG that is damaged in
the middle as it is, where native replaces it: only a manifest's hash tells.
"""

from __future__ import annotations

import logging
import shlex
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from fastvicreg.contracts import Crops, Cursor, Plan, ReadAhead, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.engines.batching import Batching
from fastvicreg.pipelines.engines.dali_samples import Job, Samples, StoredSource
from fastvicreg.pipelines.engines.dali_thread import Watched
from fastvicreg.pipelines.engines.memory import PixelMemory
from fastvicreg.pipelines.engines.native import NativeEngine
from fastvicreg.pipelines.engines.options import EngineOptions
from fastvicreg.pipelines.faults import FaultLog, Replaced
from fastvicreg.pipelines.sources.folder import FolderSource

if TYPE_CHECKING:
    from fastvicreg.pipelines.engines.dali_graph import Graph

Decoder = Literal["auto", "cpu", "mixed"]
DEPTH = 2
"""Batches that DALI works on at most: its images do not fit into the processor's caches as it is."""
Delivery = tuple[Crops, list[Replaced]]

log = logging.getLogger(__name__)


class DALIEngine:
    """Reads a ``.beton`` or shards with DALI installed; ``decoder`` auto is "mixed" where ``device`` is CUDA.

    With "mixed" JPEGs go to the GPU encoded, and the crops lie there. Beside the batch in use ``prefetch`` + 1 more are
    under way. On the GPU a batch may be read by what the consumer's stream holds when it asks for the next one; to
    keep it longer, use ``record_stream``.
    """

    def __init__(self, source: Source, plan: Plan, batching: Batching, options: EngineOptions) -> None:
        """``UserError`` where ``source`` holds no encoded images of its own, DALI or the GPU asked for is not here,
        ``plan`` is an evaluation's, or ``resample`` names an implementation.
        """
        self._source = _stored(source)
        if plan.support != "crop":
            raise UserError("--pipeline dali cuts training views only: evaluate with --pipeline native.")
        if options.resample != "auto":
            raise UserError(
                f"--kernel resample={options.resample}: the dali pipeline cuts with DALI's own resize; leave it out."
            )
        self._device = _decoding_device(options.decoder, options.device)
        _require_dali()
        self._plan = plan
        self._batching = batching
        self._workers = options.threads
        self._depth = min(options.prefetch, DEPTH)
        self._ready = max(1, options.prefetch - self._depth)
        self._hw_decoder_load = options.hw_decoder_load
        self._memory = PixelMemory(pin=options.pin)
        self._stream = None if self._device is None else torch.cuda.Stream(self._device)
        self._native = NativeEngine(source, plan, batching, EngineOptions(workers=1, prefetch=1))
        self._samples = Samples(self._source, plan)
        if self._source.expected_hash(0) is None:
            log.warning(
                "the data has no manifest: dali trains on JPEGs damaged in the middle as they are; fastvicreg verify "
                "--decode finds them, fastvicreg convert adds a manifest."
            )
        self._graph: Graph | None = None
        self._side = 0
        self._running: Watched[Delivery] | None = None
        self.fault_log = FaultLog(options.budget)

    def batches_per_epoch(self, epoch: int) -> int:
        return self._batching.batches_per_epoch

    def faults(self) -> Mapping[str, int]:
        return self.fault_log.counts()

    def close(self) -> None:
        """End the threads; what is under way is dropped."""
        self._stop()
        self._graph = None
        self._native.close()

    def batches(self, start: Cursor) -> Iterator[Crops]:
        """From ``start`` to the end of its epoch; ends an epoch that is still running.

        ``UserError`` when the fault budget is exceeded, ``RuntimeError`` when DALI fails for no sample's sake or hangs.
        """
        self._stop()
        self.fault_log.start_epoch()
        running = self._running = Watched(self._deliveries(start), "dali", self._ready)
        try:
            for crops, replaced in running:
                self.fault_log.deliver(len(crops.slot_B), replaced)
                yield crops
                if self._stream is not None:
                    # The batch is still held here: its memory serves another only once the consumer has read it.
                    self._stream.wait_stream(torch.cuda.current_stream(self._device))
        finally:
            running.close()

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None and not running.close():
            self._graph = None  # it hangs: its thread is left to itself

    def _deliveries(self, start: Cursor) -> Generator[Delivery, None, None]:
        """What ``batches`` delivers, with up to ``DEPTH`` batches submitted to DALI; runs in a thread of its own."""
        from fastvicreg.pipelines.engines.dali_graph import GraphError

        order = self._plan.order(start.epoch)
        side = self._plan.size(start.epoch)
        ahead = iter(range(start.batch, self.batches_per_epoch(start.epoch)))
        pending: deque[Job] = deque()
        submitted = 0  # of ``pending``, the first ones
        graph = self._opened(side)
        try:
            while True:
                while len(pending) < self._depth and (batch := next(ahead, None)) is not None:
                    if isinstance(self._source, ReadAhead):  # a job checks its samples, and so reads them
                        self._source.read_ahead(self._batching.slots(order, batch + self._depth))
                    pending.append(self._samples.job(Cursor(start.epoch, batch), self._batching.slots(order, batch)))
                if not pending:
                    return
                try:
                    for job in list(pending)[submitted:]:
                        _submit(graph, job)
                        submitted += 1
                    views = _take(graph, pending[0], self._stream)
                except GraphError as error:
                    self._graph = None
                    self._isolate(list(pending), side, error)
                    pending = deque(self._samples.job(job.cursor, job.slot_B) for job in pending)
                    graph, submitted = self._opened(side), 0
                    continue
                submitted -= 1
                yield self._deliver(pending.popleft(), views, side)
        finally:
            if submitted:  # an epoch left early: what is under way would be taken for the next epoch's
                self._graph = None

    def _deliver(self, job: Job, views: list[Tensor], side: int) -> Delivery:
        count = len(job.slot_B)
        shape = (count, self._plan.views, side, side, 3)
        with torch.cuda.stream(self._stream):
            if self._device is None:
                crops_BVHWC = self._memory.take(shape)
                host_BVHWC = crops_BVHWC.numpy()
                for v, view_PSSC in enumerate(views):
                    _place(host_BVHWC[:, v], job, view_PSSC.numpy())
            else:
                crops_BVHWC = torch.empty(shape, dtype=torch.uint8, device=self._device)
                host_BVHWC = np.empty(shape, np.uint8)  # pages that nothing is written to take no memory
                for v, view_PSSC in enumerate(views):
                    _place(crops_BVHWC[:, v], job, view_PSSC)
            label_B = torch.tensor([self._source.label(slot) for slot in job.slot_B.tolist()])
            fault_B = torch.zeros(count, dtype=torch.uint8)
            crops = Crops(crops_BVHWC, job.slot_B, job.slot_B.clone(), label_B, fault_B, job.cursor)
            replaced: list[Replaced] = []
            for at in np.setdiff1d(np.arange(count), job.place_P).tolist():
                replaced += self._native.fill(crops, host_BVHWC, at, at + 1)
                if self._device is not None:
                    crops_BVHWC[at].copy_(torch.from_numpy(host_BVHWC[at]))
        if self._stream is not None:
            self._stream.synchronize()  # whatever stream reads the batch, it is there
        return crops, replaced

    def _isolate(self, jobs: list[Job], side: int, error: Exception) -> None:
        """Find what ended the graph and keep it from the next; ``RuntimeError`` where it is none of the samples."""
        guilty: list[int] = []
        for job in jobs:
            guilty = self._samples.damaged(job, self._workers) or self._refused_alone(job, side)
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

    def _refused_alone(self, job: Job, side: int) -> list[int]:
        """The samples that DALI refuses, each tried in a batch of its own."""
        from fastvicreg.pipelines.engines.dali_graph import GraphError

        refused = []
        graph = self._opened(side)
        for at, slot in enumerate(job.slot_B[job.place_P].tolist()):
            alone = job._replace(place_P=job.place_P[at : at + 1], request=job.request.part(at))
            try:
                _submit(graph, alone)
                _take(graph, alone, self._stream)
            except GraphError:
                refused.append(slot)
                self._graph = None
                graph = self._opened(side)
        return refused

    def _opened(self, side: int) -> Graph:
        """The graph for views of ``side`` pixels, kept from epoch to epoch."""
        from fastvicreg.pipelines.engines.dali_graph import Graph, Shape

        if self._graph is None or self._side != side:
            share = -(-self._batching.batch_size // self._batching.world_size)
            self._graph = Graph(
                Shape(share, self._plan.views, side, self._workers, self._depth, self._device, self._hw_decoder_load)
            )
            self._side = side
        return self._graph


def _submit(graph: Graph, job: Job) -> None:
    if len(job.place_P):
        graph.submit(job.request)


def _take(graph: Graph, job: Job, stream: torch.cuda.Stream | None) -> list[Tensor]:
    """The views of ``job``; none where it has no sample for DALI."""
    return graph.take(stream) if len(job.place_P) else []


def _place(out_BSSC: np.ndarray | Tensor, job: Job, view_PSSC: np.ndarray | Tensor) -> None:
    whole = len(job.place_P) == len(job.slot_B)
    out_BSSC[slice(None) if whole else job.place_P] = view_PSSC  # type: ignore[index,assignment]


def _stored(source: Source) -> StoredSource:
    if isinstance(source, StoredSource):
        return source
    if isinstance(source, FolderSource):
        folder, target = shlex.quote(str(source.root)), shlex.quote(f"{source.root.absolute()}-shards")
        raise UserError(
            f"--pipeline dali reads shards or a .beton file, and {source.root} is a folder of images: convert it once "
            f"with fastvicreg convert {folder} {target} --format dali"
        )
    raise UserError(
        f"--pipeline dali reads shards or a .beton file, not a {type(source).__name__}: give --pipeline native."
    )


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
