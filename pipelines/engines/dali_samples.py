"""What is handed to DALI: samples that are plainly good, with their boxes; one bad sample would end its pipeline.

P samples handed over, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvicreg.contracts import Cursor, Plan
from fastvicreg.pipelines import jpeg
from fastvicreg.pipelines.decode import MAX_PIXELS
from fastvicreg.pipelines.formats.dataset import StoredSource

PROCESSES = ("baseline", "extended", "progressive")
COLOURS = ("YCbCr", "grey")


class Request(NamedTuple):
    """One batch for DALI: encoded images and what is cut from them, in source pixels."""

    encoded_P: list[NDArray[np.uint8]]  # the source's own memory, read until the batch is taken
    start_PV2: NDArray[np.int32]  # y, x
    size_PV2: NDArray[np.int32]  # h, w
    flip_PV: NDArray[np.int32]  # 1: mirrored

    def part(self, at: int) -> Request:
        """The sample at ``at`` alone."""
        one = slice(at, at + 1)
        return Request(self.encoded_P[one], self.start_PV2[one], self.size_PV2[one], self.flip_PV[one])

    def places(self) -> Tensor:
        """``Crops.places_BV5`` of these samples."""
        boxes = np.concatenate((self.start_PV2[..., ::-1], self.size_PV2[..., ::-1], self.flip_PV[..., None]), -1)
        return torch.from_numpy(boxes).float()


class Job(NamedTuple):
    """A batch of the plan: ``place_P`` are the places in it that DALI fills; the host fills the others."""

    cursor: Cursor
    slot_B: Tensor
    place_P: NDArray[np.int64]
    request: Request


class Samples:
    """Sorts a batch's samples by their bytes.

    With a manifest a sample is good where its hash is the recorded one; without, where its header is that of a whole
    8-bit JPEG in YCbCr or grey. Damage in the middle of such a JPEG goes unseen: DALI takes it where native may not.
    """

    def __init__(self, source: StoredSource, plan: Plan) -> None:
        self._source = source
        self._plan = plan
        self._refused: set[int] = set()

    def job(self, cursor: Cursor, slot_B: Tensor) -> Job:
        """The batch of ``slot_B`` as DALI gets it; no sample raises here."""
        place, encoded, sizes = [], [], []
        for at, slot in enumerate(slot_B.tolist()):
            if (good := self._good(slot)) is not None:
                place.append(at)
                encoded.append(good[0])
                sizes.append(good[1])
        place_P = np.array(place, np.int64)
        wh_P2 = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)
        box_PV4, flip_PV = self._plan.boxes(cursor.epoch, slot_B[place_P], wh_P2)
        yxhw_PV4 = box_PV4.numpy()[..., [1, 0, 3, 2]].astype(np.int32)
        request = Request(encoded, yxhw_PV4[..., :2], yxhw_PV4[..., 2:], flip_PV.numpy().astype(np.int32))
        return Job(cursor, slot_B, place_P, request)

    def refuse(self, slots: Sequence[int]) -> None:
        """Keep these samples from DALI from now on."""
        self._refused.update(slots)

    def damaged(self, job: Job, workers: int) -> list[int]:
        """The samples of ``job`` that libjpeg-turbo does not decode without a warning."""
        handed = job.slot_B[job.place_P].tolist()
        with ThreadPoolExecutor(workers, thread_name_prefix="fastvicreg-dali") as pool:
            clean = pool.map(self._decodes_cleanly, handed, job.request.encoded_P)
            return [slot for slot, good in zip(handed, clean, strict=True) if not good]

    def _decodes_cleanly(self, slot: int, encoded: NDArray[np.uint8]) -> bool:
        if self._source.is_raw(slot):
            return True
        try:
            simplejpeg.decode_jpeg(encoded, "RGB", strict=True)
        except ValueError:
            return False
        return True

    def _good(self, slot: int) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
        """(bytes, (width, height)), or None for a sample that the host must look at."""
        if slot in self._refused:
            return None
        try:
            encoded = self._source.encoded(slot)
        except OSError:
            return None
        trusted = self._source.expected_hash(slot) is not None or self._source.is_raw(slot)
        size = self._source.size(slot) if trusted else plain_size(encoded)
        return None if size is None else (np.frombuffer(encoded, np.uint8), size)


def plain_size(encoded: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) of a JPEG that DALI and libjpeg-turbo decode to the same pixels, as far as its header tells."""
    try:
        header = jpeg.read_header(encoded)
        height, width = map(int, simplejpeg.decode_jpeg_header(encoded)[:2])
    except ValueError:
        return None
    plain = (
        header.process in PROCESSES
        and not header.arithmetic
        and header.precision == 8
        and header.colour in COLOURS
        and header.complete
        and (header.width, header.height) == (width, height)
        and 0 < width * height <= MAX_PIXELS
    )
    return (width, height) if plain else None
