"""Which format and size of a dataset feeds a GPU on this machine: measured on a few hundred of its images.

Measured: reads from the disk, decoding and cropping by one thread, bytes and fidelity of each form. The GPU's rate is
predicted by ``cost_model``, or given.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastvicreg.errors import UserError
from fastvicreg.kernels.resample import resample_views
from fastvicreg.pipelines.convert.prepare import as_jpeg, shrink
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.decode import DecodeError, decode_rgb
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.formats.dataset import DatasetSource
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.plan import eval_plan, train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.pipelines.to_rgb import rule_of
from fastvicreg.profiles.measure import alternating, summarize
from fastvicreg.threads import one_thread

SIZE = 224
"""Side of the views in pixels."""
READERS = 16
"""Threads that read at once."""
IN_MEMORY = 0.7
"""Share of the memory that the page cache may have."""
SPARE = 1.1
"""Images that are delivered for one that the GPU takes: below it the GPU waits now and then."""


@dataclass(frozen=True)
class Form:
    """One way to store the images."""

    name: str
    max_size: int  # longest side in pixels; 0: as they are
    raw: bool
    options: str  # of convert

    def stored(self, encoded: bytes, pixels_HWC: NDArray[np.uint8]) -> bytes:
        """An image in this form."""
        if not self.max_size:
            return encoded
        if self.raw:
            return shrink(pixels_HWC, self.max_size).tobytes()
        return bytes(as_jpeg(encoded, Settings(max_size=self.max_size, reencode=True))[1])


FORMS = (
    Form("original bytes", 0, False, ""),
    Form("500 px, q90", 500, False, "--max-size 500 --reencode"),
    Form("400 px, q90", 400, False, "--max-size 400 --reencode"),
    Form("500 px, pixels", 500, True, "--max-size 500 --raw"),
)
"""The ones to be preferred first: as they are, then what is smaller, then what takes no decoding."""


class Measured(NamedTuple):
    """A form of the dataset on this machine."""

    form: Form
    mean_bytes: float
    images_per_core_s: float  # decoded, and two views cut
    spread: float
    psnr: float  # dB, of the images' central crops against the originals'; infinite for the originals


class Disk(NamedTuple):
    """Reads of whole images in random order, by ``READERS`` threads."""

    bytes_per_s: float
    images_per_s: float
    dropped: bool  # whether the page cache was emptied of them before


@dataclass(frozen=True)
class Machine:
    """What there is."""

    cores: int
    memory: float  # bytes that this process may have
    disk: Disk
    gpus: int
    images_per_gpu_s: float


class Verdict(NamedTuple):
    """What a form means for a machine; rates of all GPUs together."""

    measured: Measured
    total_bytes: float
    cores_per_gpu: float
    fits: bool  # into the page cache
    disk_share: float  # of what the disk gives that the GPUs take, once the page cache does not hold it
    images_per_s: float
    feeds: bool


def sampled(source: DatasetSource, count: int, seed: int = 0) -> list[int]:
    """``count`` samples that can be decoded, spread at random; ``UserError`` where there are too few."""
    order = np.random.default_rng(seed).permutation(len(source))[: 4 * count].tolist()
    found: list[int] = []
    for index in order:
        try:
            decode_rgb(source.encoded(index), rule_of(source))
        except (DecodeError, OSError):
            continue
        found.append(index)
        if len(found) == count:
            break
    if not found:
        raise UserError(f"no readable image among {len(order)} of {source.path}: fastvicreg verify tells why.")
    return found


def measure_disk(source: DatasetSource, indices: Sequence[int]) -> Disk:
    """Read ``indices`` after the page cache was emptied of their files, where the system lets us."""
    files = _files(source, indices)
    dropped = sum(map(_drop, files)) == len(files)
    started = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        size = sum(pool.map(lambda index: len(bytes(source.encoded(index))), indices))
    seconds = time.perf_counter() - started
    return Disk(size / seconds, len(indices) / seconds, dropped)


def measure_forms(source: DatasetSource, indices: Sequence[int], repeats: int = 3) -> list[Measured]:
    """Each of ``FORMS``, taking turns, by one thread."""
    rule = rule_of(source)
    encoded = [bytes(source.encoded(index)) for index in indices]
    pixels = [decode_rgb(data, rule) for data in encoded]
    stored = {form: [form.stored(*pair) for pair in zip(encoded, pixels, strict=True)] for form in FORMS}
    decoders = {form: _decoder(form, pixels) for form in FORMS}
    passes = {form: _pass(stored[form], decoders[form]) for form in FORMS}
    seconds: dict[Form, list[float]] = {form: [] for form in FORMS}
    with one_thread():
        for repeat in range(repeats + 1):
            for form in alternating(passes, repeat):
                started = time.thread_time()  # of the core: other programs do not count
                passes[form]()
                if repeat:  # the first round compiles and warms caches
                    seconds[form].append(time.thread_time() - started)
    found = []
    for form in FORMS:
        timing = summarize(seconds[form])
        few = range(min(64, len(pixels)))
        error = float(np.mean([_squared_error(pixels[i], decoders[form](stored[form][i], i)) for i in few]))
        psnr = 10 * math.log10(255**2 / error) if error else math.inf
        mean = sum(map(len, stored[form])) / len(indices)
        found.append(Measured(form, mean, len(indices) / timing.ms, timing.spread, psnr))
    return found


def judge(machine: Machine, samples: int, forms: Sequence[Measured]) -> list[Verdict]:
    """What each form means for ``machine``, in the order of ``forms``."""
    needed = machine.images_per_gpu_s * machine.gpus
    own = forms[0].mean_bytes
    verdicts = []
    for one in forms:
        total = one.mean_bytes * samples
        fits = total <= IN_MEMORY * machine.memory
        # Small reads are bound by their number, large ones by their bytes: never more images than were read.
        disk = machine.disk.images_per_s * min(1.0, own / one.mean_bytes)
        decoded = one.images_per_core_s * machine.cores
        rate = decoded if fits else min(decoded, disk)
        cores = machine.images_per_gpu_s / one.images_per_core_s
        verdicts.append(Verdict(one, total, cores, fits, needed / disk, min(rate, needed), rate >= SPARE * needed))
    return verdicts


def chosen(verdicts: Sequence[Verdict]) -> Verdict:
    """The first that feeds the GPUs, else the one that comes nearest."""
    return next((one for one in verdicts if one.feeds), max(verdicts, key=lambda one: one.images_per_s))


def memory() -> float:
    """Bytes of memory that this process may have: the machine's, or its container's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return float(total)


def _files(source: DatasetSource, indices: Sequence[int]) -> list[Path]:
    """The files that hold these samples."""
    if isinstance(source, BetonSource):
        return [source.path]
    if isinstance(source, ShardSource):
        return [tar for tar, _ in source.layout.files if tar.is_file()]
    names = [source.path / source.name(index) for index in indices]
    return [name for name in names if name.is_file()] or [source.path]


def _drop(file: Path) -> bool:
    """Ask the system to forget the file's pages; pages that are mapped stay."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _decoder(form: Form, pixels: Sequence[NDArray[np.uint8]]) -> Callable[[bytes, int], NDArray[np.uint8]]:
    if not form.raw:
        return lambda data, index: decode_rgb(data)
    shapes = [shrink(image, form.max_size).shape for image in pixels]
    return lambda data, index: np.frombuffer(data, np.uint8).reshape(shapes[index])


def _pass(stored: Sequence[bytes], decode: Callable[[bytes, int], NDArray[np.uint8]]) -> Callable[[], None]:
    """Every image decoded once, and two views cut from it."""
    plan = train_plan(len(stored), seed=0, recipe=named_recipe("official"), image_size=SIZE)
    wh_B2 = torch.tensor([decode(data, index).shape[1::-1] for index, data in enumerate(stored)])
    boxes, flips = (part.numpy() for part in plan.boxes(0, torch.arange(len(stored)), wh_B2))
    out = np.empty((2, SIZE, SIZE, 3), np.uint8)

    def run() -> None:
        for index, data in enumerate(stored):
            resample_views(decode(data, index), boxes[index], flips[index], out)

    return run


def _squared_error(original_HWC: NDArray[np.uint8], other_HWC: NDArray[np.uint8]) -> float:
    """Mean over the central crop."""
    one, two = (_central(image).astype(np.float64) for image in (original_HWC, other_HWC))
    return float(((one - two) ** 2).mean())


def _central(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    plan = eval_plan(1)
    box_BV4, flip_BV = plan.boxes(0, torch.tensor([0]), torch.tensor([image_HWC.shape[1::-1]]))
    out = np.empty((1, SIZE, SIZE, 3), np.uint8)
    resample_views(image_HWC, box_BV4[0].numpy(), flip_BV[0].numpy(), out, plan.support)
    return out[0]
