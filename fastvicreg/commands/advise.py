"""``fastvicreg advise --data DATA``: which format and size feeds a GPU on this machine, with the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastvicreg.commandline import parse
from fastvicreg.errors import UserError
from fastvicreg.provenance import document, write_json

if TYPE_CHECKING:
    from fastvicreg.profiles.advice import Machine, Verdict


@dataclass(frozen=True)
class AdviseOptions:
    """Measure decoding and disk on a sample of DATA, and say in which form a GPU is fed. Takes less than a minute."""

    data: str
    """Folder of images or of tar shards, or a .beton; of splits the training one."""
    image: str = ""
    """What holds the image, as for train."""
    label: str = ""
    """What holds the class, as for train."""
    gpu: str = "h100"
    """Whose rate is predicted: a100-40, a100-80, h100, h200 or rtx3090."""
    images_per_s: float = 0.0
    """Images a second that one GPU takes, where it is known (a run shows it); in place of the prediction."""
    gpus: int = 1
    """GPUs of this machine."""
    cores: int = 0
    """Cores for loading; 0: all that this process may use."""
    preset: str = "imagenet-100ep"
    """Encoder and method of the prediction."""
    batch_size: int = 256
    """Images a step of one GPU, for the prediction."""
    sample: int = 160
    """Images that are measured."""
    json: str | None = None
    """Write the figures to this file."""


def main(arguments: Sequence[str]) -> int:
    """Measure and tell; returns 0."""
    options = parse(AdviseOptions, arguments, "advise")
    for flag, value, least in (
        ("--gpus", options.gpus, 1), ("--cores", options.cores, 0), ("--sample", options.sample, 1),
        ("--batch-size", options.batch_size, 2), ("--images-per-s", options.images_per_s, 0),
    ):  # fmt: skip
        if not value >= least or math.isinf(value):
            raise UserError(f"{flag} {value}: give {least} or more.")

    import os

    from fastvicreg.pipelines.sources import open_source, splits_of
    from fastvicreg.profiles import advice

    source = open_source(splits_of(options.data).train, image=options.image, label=options.label)
    rate = options.images_per_s or _predicted(options)
    indices = advice.sampled(source, options.sample)
    disk = advice.measure_disk(source, indices)
    forms = advice.measure_forms(source, indices)
    cores = options.cores or len(os.sched_getaffinity(0))
    machine = advice.Machine(cores, advice.memory(), disk, options.gpus, rate)
    verdicts = advice.judge(machine, len(source), forms)
    best = advice.chosen(verdicts)
    print("\n".join(_lines(options, machine, verdicts, best, len(source), str(source.path))))
    if options.json:
        write_json(
            options.json, document("advise", [_row(one, machine, one is best) for one in verdicts], len(indices))
        )
    return 0


def _predicted(options: AdviseOptions) -> float:
    """Images a second of one GPU, by the cost model."""
    from fastvicreg.presets import preset
    from fastvicreg.profiles import cost_model
    from fastvicreg.profiles.layers import trace
    from fastvicreg.registry import unknown

    if options.gpu not in cost_model.GPUS:
        raise UserError(unknown("GPU", options.gpu, cost_model.GPUS))
    traced = trace(preset(options.preset).config)
    found = cost_model.predict(traced, cost_model.GPUS[options.gpu], gpus=1, batch_size=options.batch_size)
    return found.batch / found.device


def _lines(
    options: AdviseOptions, machine: Machine, verdicts: Sequence[Verdict], best: Verdict, samples: int, path: str
) -> list[str]:
    from fastvicreg.profiles.advice import IN_MEMORY, SIZE

    source = "as given" if options.images_per_s else f"predicted, {options.preset} at {options.batch_size} a step"
    disk = machine.disk
    cold = "" if disk.dropped else ", perhaps from memory"
    lines = [
        f"{path}: {samples:,} images; {machine.gpus} GPU{'s' if machine.gpus > 1 else ''} ({options.gpu}), "
        f"{machine.cores} cores, {machine.memory / 1e9:,.0f} GB of memory",
        f"one GPU takes {machine.images_per_gpu_s:,.0f} images/s ({source}); the disk gives {disk.images_per_s:,.0f} "
        f"images/s, {disk.bytes_per_s / 1e6:,.0f} MB/s, in random order{cold}",
        "",
        f"{'form':15} {'kB/image':>9} {'GB':>8} {'images/s a core':>16} {'cores a GPU':>12} {'PSNR dB':>8} "
        f"{'page cache':>11} {'fed images/s':>13}",
    ]
    for one in verdicts:
        psnr = "exact" if math.isinf(one.measured.psnr) else f"{one.measured.psnr:.1f}"
        lines.append(
            f"{one.measured.form.name:15} {one.measured.mean_bytes / 1e3:9,.1f} {one.total_bytes / 1e9:8,.1f} "
            f"{one.measured.images_per_core_s:16,.0f} {one.cores_per_gpu:12,.1f} {psnr:>8} "
            f"{'fits' if one.fits else 'no':>11} {one.images_per_s:13,.0f}"
        )
    needed = machine.images_per_gpu_s * machine.gpus
    lines += ["", *_recommendation(machine, best, needed, path)]
    lines.append(
        f"(the page cache is counted as {IN_MEMORY:.0%} of the memory; decoding is one thread's, two {SIZE} px views "
        "an image; PSNR of the central crops)"
    )
    return lines


def _recommendation(machine: Machine, best: Verdict, needed: float, path: str) -> list[str]:
    form = best.measured.form
    lines = []
    if best.feeds:
        lines.append(
            f"{form.name}: {best.cores_per_gpu:.1f} cores a GPU do, and there are {machine.cores / machine.gpus:g}"
        )
    else:
        decoded = best.measured.images_per_core_s * machine.cores
        cause = "cores" if decoded <= best.images_per_s * 1.001 else "disk"
        lines.append(
            f"no form feeds {machine.gpus} GPU{'s' if machine.gpus > 1 else ''}: {form.name} comes nearest, "
            f"{best.images_per_s:,.0f} of {needed:,.0f} images/s, bound by the {cause}"
            + (f"; {best.cores_per_gpu * machine.gpus:,.0f} cores would do" if cause == "cores" else "")
        )
    if not best.fits:
        lines.append(
            "it does not fit into memory, so that every epoch reads the disk: "
            f"{min(best.disk_share, 9.99):.0%} of what it gives"
            + ("; shards with --shuffle blocks are read in order" if best.disk_share > 0.5 else "")
        )
    options = f" {form.options}" if form.options else ""
    lines.append(f"fastvicreg convert {path} images.beton{options}")
    return lines


def _row(one: Verdict, machine: Machine, recommended: bool) -> dict[str, Any]:
    measured = one.measured
    return {
        "form": measured.form.name,
        "mean_bytes": measured.mean_bytes,
        "images_per_core_s": measured.images_per_core_s,
        "spread": measured.spread,
        "psnr": None if math.isinf(measured.psnr) else measured.psnr,
        "total_bytes": one.total_bytes,
        "cores_per_gpu": one.cores_per_gpu,
        "fits": one.fits,
        "disk_share": one.disk_share,
        "images_per_s": one.images_per_s,
        "feeds": one.feeds,
        "recommended": recommended,
        "disk_images_per_s": machine.disk.images_per_s,
        "disk_bytes_per_s": machine.disk.bytes_per_s,
        "images_per_gpu_s": machine.images_per_gpu_s,
    }
