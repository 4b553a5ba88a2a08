"""Run as a process: mutated datasets through verify, convert and every engine, each held to what it may deliver.

``python surviving.py FOLDER SEED ROUNDS...`` prints a line before each round, so that what ends the process is known,
and at its end the counts as JSON. Memory is limited once all engines have run.
"""

from __future__ import annotations

import faulthandler
import io
import json
import resource
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from damaged_sets import files, images, members, stored, structure
from PIL import Image

from fastvicreg.contracts import Crops, Cursor, Plan
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.formats.dataset import DatasetSource
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.pipelines.verify import verify_dataset

MEMORY = 3 << 29
"""Bytes beyond what the warm process has mapped: an image at Pillow's limit, decoded, twice."""
STALL = 60.0
SIDE = 16
BUDGET = FaultBudget(10**9, 1.0)
READERS = {"folder": ("native",), "beton": ("native", "ffcv", "dali"), "shards": ("native", "dali")}
MEAN, WORST = 2.0, 12.0
"""Of 255, by which dali's crops of these small images may differ: its resize and its decoder are its own."""


class WrongError(Exception):
    """Something that must not happen to anybody's data."""


@dataclass
class Truth:
    """What the undamaged dataset holds, by the samples' names."""

    payload: dict[str, bytes] = field(default_factory=dict)
    label: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def truth_of(source: DatasetSource) -> Truth:
    names = [source.name(i) for i in range(len(source))]
    return Truth(
        {name: bytes(source.encoded(i)) for i, name in enumerate(names)},
        {name: source.label(i) for i, name in enumerate(names)},
        source.classes,
    )


def plan_of(samples: int) -> Plan:
    return train_plan(samples, seed=3, recipe=named_recipe("official"), image_size=SIDE)


def decoded(data: bytes) -> Image.Image:
    """By Pillow alone, which refuses what is damaged."""
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith(("I", "F")):  # more than 8 bits: the rule for those is not under test here
        raise OSError("more than 8 bits")
    return image.convert("RGB")


def expected(data: bytes, plan: Plan, epoch: int, slot: int) -> np.ndarray | None:
    """crop_VHWC by Pillow; None where the bytes are nothing that it decodes."""
    try:
        image = decoded(data)
    except Exception:
        return None
    box_1V4, flip_1V = plan.boxes(epoch, torch.tensor([slot]), torch.tensor([image.size]))
    views = []
    for (x, y, w, h), mirrored in zip(box_1V4[0].tolist(), flip_1V[0].tolist(), strict=True):
        view = image.crop((int(x), int(y), int(x + w), int(y + h))).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        views.append(np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else view))
    return np.stack(views)


def read(engine_name: str, source: DatasetSource, plan: Plan) -> tuple[list[Crops], dict[str, int]]:
    """Epoch 1 and then epoch 0, so that memory holds other pixels when that is read; epoch 0 twice for dali."""
    engine = build_engine(
        engine_name, source, plan, batch_size=max(2, len(source) // 2), workers=2, budget=BUDGET, stall=STALL
    )
    try:
        for _ in engine.batches(Cursor(1, 0)):
            pass
        found = list(engine.batches(Cursor(0, 0)))
        counts = dict(engine.faults().counts)
        if engine_name == "dali":
            for _ in engine.batches(Cursor(2, 0)):
                pass
            for a, b in zip(found, list(engine.batches(Cursor(0, 0))), strict=True):
                if not all(torch.equal(x, y) for x, y in zip(a.groups, b.groups, strict=True)):
                    raise WrongError("dali: the same epoch's pixels differ a second time")
        return found, counts
    finally:
        engine.close()


def check_crops(name: str, source: DatasetSource, plan: Plan, batches: list[Crops], counts: dict[str, int]) -> None:
    """Every crop is that of the sample which it claims to be; what was replaced is counted."""
    replaced = 0
    for crops in batches:
        for at, (slot, index) in enumerate(zip(crops.slot_B.tolist(), crops.index_B.tolist(), strict=True)):
            replaced += bool(crops.fault_B[at])
            if bool(crops.fault_B[at]) != (slot != index):
                raise WrongError(f"{name}: sample {slot} was replaced by {index}, its fault is {crops.fault_B[at]}")
            if crops.label_B[at] != source.label(index):
                raise WrongError(f"{name}: sample {index} has the label {crops.label_B[at]}")
            wanted = expected(bytes(source.encoded(index)), plan, 0, slot)
            pixels = crops.groups[0][at].numpy()
            if wanted is None and name == "dali":
                continue  # a JPEG damaged in its middle, which dali takes as it is: read twice alike, above
            if wanted is None:
                raise WrongError(f"{name}: sample {index} was delivered, and Pillow refuses its bytes")
            off = np.abs(pixels.astype(np.int16) - wanted)
            if name == "dali" and not (off.mean() < MEAN and off.mean((1, 2, 3)).max() < WORST):
                raise WrongError(f"dali: sample {index}: off by {off.mean():.1f} in the mean")
            if name != "dali" and off.max():
                raise WrongError(f"{name}: sample {index}: pixels that are not its own, off by up to {off.max()}")
    if sum(counts.values()) != replaced:
        raise WrongError(f"{name}: {replaced} samples were replaced, {counts} counted")


def is_true(source: DatasetSource, truth: Truth) -> bool:
    """Whether all that it would give is what the undamaged dataset holds, or is refused when it is read."""
    for index in range(len(source)):
        name = source.name(index)
        try:
            given = bytes(source.encoded(index))
        except OSError:
            continue
        if name not in truth.payload or truth.payload[name] != given or truth.label[name] != source.label(index):
            return False
    return source.classes == truth.classes


def through(path: Path, work: Path, chance: Random, told: Counter[str], truth: Truth | None) -> None:
    """One dataset through everything; ``truth`` where a manifest vouches for what it holds."""
    report = None
    try:
        report = verify_dataset(path, decode=True, workers=2)
        source = open_source(path)
    except UserError as error:
        if "\n" in str(error):
            raise WrongError(f"more than a line: {error}") from error
        told["refused"] += 1
        if report is not None and not report.findings:
            raise WrongError("verify finds nothing, and it cannot be opened") from error
        return
    told["found by verify"] += bool(report.findings)
    if truth is not None and not is_true(source, truth):
        raise WrongError("its manifest vouches for what is not so")
    plan = plan_of(len(source))
    lost = 0
    for name in READERS[source.format]:
        try:
            batches, counts = read(name, source, plan)
        except UserError as error:
            if "\n" in str(error):
                raise WrongError(f"more than a line: {error}") from error
            told[f"{name}: ended in one line"] += 1
            continue
        check_crops(name, source, plan, batches, counts)
        lost = max(lost, sum(counts.values()))
    told["replaced"] += lost
    told["harmless, or as it decodes"] += not report.findings and not lost
    convert(path, work, source, chance, told)


def convert(path: Path, work: Path, source: DatasetSource, chance: Random, told: Counter[str]) -> None:
    """To the other formats: what is stored is the source's bytes or decodes; all else is skipped and counted."""
    settings = Settings(page_size=1 << 21, decode=chance.random() < 0.5, format=chance.choice(("beton", "shards")))
    target = work / ("converted.beton" if settings.format == "beton" else "converted")
    try:
        summary = convert_dataset(path, target, settings, workers=2)
    except UserError as error:
        if "\n" in str(error):
            raise WrongError(f"more than a line: {error}") from error
        told["convert: ended in one line"] += 1
        return
    if summary.images + len(summary.skipped) != len(source):
        raise WrongError(f"{len(source)} samples, {summary.images} converted, {len(summary.skipped)} skipped")
    told["convert: skipped"] += len(summary.skipped)
    converted = open_source(target)
    own = {source.name(i): i for i in range(len(source))}
    for index in range(len(converted)):
        stored, origin = bytes(converted.encoded(index)), own[converted.name(index)]
        if stored != bytes(source.encoded(origin)) or settings.decode:
            decoded(stored)
        if source.classes and source.classes[source.label(origin)] != converted.classes[converted.label(index)]:
            raise WrongError(f"convert: {converted.name(index)} changed its class")


def prepare(work: Path) -> dict[str, Truth]:
    """The undamaged datasets, and others to splice from."""
    for name, seed in (("whole", 0), ("other", 1)):
        chance = Random(seed)
        for number, (file, content) in enumerate(images(chance, 12)):
            path = work / f"{name}-images" / "ab"[number % 2] / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        convert_dataset(work / f"{name}-images", work / f"{name}.beton", Settings(page_size=1 << 21))
        convert_dataset(work / f"{name}-images", work / name, Settings(format="shards", shard_size=12 << 10))
    found = {}
    for path in (work / "whole.beton", work / "whole"):
        source = open_source(path)
        found[source.format] = truth_of(source)
        for engine in READERS[source.format]:
            plan = plan_of(len(source))
            check_crops(engine, source, plan, *read(engine, source, plan))
    return found


def main(root: Path, seed: int, rounds: list[str]) -> None:
    faulthandler.enable()
    print(f"preparing in {root}", flush=True)
    truth, told, tried, wrong = prepare(root), Counter[str](), Counter[str](), []
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))
    for number, kind in enumerate(rounds):
        print(f"round {number}: {kind}, seed {seed}", flush=True)
        chance = Random(f"{seed} {number} {kind}")
        known = None
        if kind in ("files", "members", "stored"):
            path, count = {"files": files, "members": members, "stored": stored}[kind](root, chance)
        else:
            manifest = "manifest" in kind or chance.random() < 0.5
            path, count = structure(root, chance, kind, manifest=manifest)
            known = truth["shards" if path.name == "x" else "beton"] if manifest else None
        tried[kind] += count
        try:
            through(path, root, chance, told, known)
        except Exception as error:
            wrong.append(f"round {number}, {kind}, seed {seed}: {type(error).__name__}: {error}")
            if "--trace" in sys.argv:
                raise
        for left in ("images", "tars", "x", "x.beton", "x.beton.manifest", "converted", "converted.beton"):
            shutil.rmtree(root / left) if (root / left).is_dir() else (root / left).unlink(missing_ok=True)
        for left in root.glob("converted*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"tried": tried, "told": told, "wrong": wrong, "peak_mb": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [one for one in sys.argv[3:] if not one.startswith("--")])
