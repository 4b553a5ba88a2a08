"""The model card: where an encoder comes from, how it was trained, what it reached, and the pixels that it expects."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from fastvicreg import __version__
from fastvicreg.evaluate.features import evaluation_resize
from fastvicreg.kernels.augment import IMAGENET_MEAN, IMAGENET_STD
from fastvicreg.pipelines.pairs.text import Text
from fastvicreg.pretrained import METADATA, TrainedEncoder
from fastvicreg.show import metrics
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.run_folder import load_preset

OF_ORIGIN = (
    "method",
    "method_settings",
    "data",
    "recipe",
    "num_views",
    "preset",
    "divergences",
    "epochs",
    "total_steps",
    "batch_size",
    "step",
    "init",
    "metrics",
    "checkpoint",
    "source",
)
"""What a card says of training, which a file that is exported again keeps."""


INPUTS = {
    "text": "A caption's words and marks in lower case as numbers, {words} with those of its beginning and end.",
    "waveform": "{clip_seconds:g} s of mono sound at {sample_rate} Hz, of mean 0 and standard deviation 1.",
    "spectrogram": "The logarithm of the power of {clip_seconds:g} s of mono sound at {sample_rate} Hz in {mels} mel "
    "bands, of mean 0 and standard deviation 1, three times as channels.",
}
"""What an encoder of each modality takes."""


def card_of(trained: TrainedEncoder) -> dict[str, Any]:
    """Everything beside the weights, as JSON has it; ``load_encoder`` needs "encoder" and "image_size"."""
    config = trained.config
    card: dict[str, Any] = {
        "version": 1,
        "encoder": dataclasses.asdict(config.encoder),  # type: ignore[call-overload]
        "features": int(getattr(trained.encoder, "features", 0)),
        "image_size": config.data.image_size,
        "resize": evaluation_resize(config.data.image_size),
        "crop": config.data.image_size,
        "interpolation": "bicubic",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    if trained.modality is not None:
        card = {name: card[name] for name in ("version", "encoder", "features", "image_size")} | _member(trained)
    origin = _of_run(trained, trained.run) if trained.run else {**trained.card, "notes": list(trained.notes)}
    kept = {name: origin[name] for name in (*OF_ORIGIN, "notes") if origin.get(name)}
    return {**card, **kept, "fastvicreg": __version__, "torch": torch.__version__}


def texts_of(trained: TrainedEncoder) -> dict[str, str]:
    """The card as a safetensors header has it."""
    return {"format": "pt", METADATA: json.dumps(card_of(trained))}


def markdown(card: dict[str, Any], *, title: str, load: str, head: str = "") -> str:
    """The card as a page, with the line of Python that loads the file; ``head`` comes before all."""
    encoder = card["encoder"]
    rows = {
        "encoder": ", ".join(str(value) if key == "arch" else f"{key} {value}" for key, value in encoder.items()),
        "features": card["features"],
        "method": card.get("method", "not recorded"),
        "settings of the method": _settings(card.get("method_settings", {})),
        "data": card.get("data", "not recorded"),
        "preset": card.get("preset", "not recorded"),
        "training": _training(card),
        "began with": card.get("init"),
        "checkpoint": card.get("checkpoint"),
        "weights from": card.get("source"),
        "written by": f"fastvicreg {card['fastvicreg']}, torch {card['torch']}",
    }
    lines = [f"# {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items() if value]
    lines += [
        "",
        "## Input" if "modality" in card else "## Pixels",
        "",
        _pixels(card),
        "",
        "## Loading",
        "",
        "```python",
        load,
        "```",
    ]
    for heading, texts in (("Departs from its source", card.get("divergences")), ("Notes", card.get("notes"))):
        if texts:
            lines += ["", f"## {heading}", "", *(f"- {text}" for text in texts)]
    if card.get("metrics"):
        lines += ["", "## Metrics of the run", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:g} |" for name, value in card["metrics"].items()]
    return head + "\n".join(lines) + "\n"


def _member(trained: TrainedEncoder) -> dict[str, Any]:
    """What an encoder of a run of pairs takes that is no image."""
    assert trained.modality is not None
    pair = trained.config.pair
    names = [side.modality for side in pair.parsed()]
    branch = "ab"[names.index(trained.modality.name)] if len(set(names)) == 2 else "a"
    words = trained.modality.vocabulary if isinstance(trained.modality, Text) else None
    card = {"modality": trained.modality.name, "branch": branch, "pair": dataclasses.asdict(pair)}
    return card | ({"words": list(words.words)} if words else {})


def _of_run(trained: TrainedEncoder, run: Path) -> dict[str, Any]:
    config, step = trained.config, int(trained.checkpoint.name.removeprefix(checkpoints.PREFIX))
    preset, divergences = load_preset(run)
    return {
        "method": config.method.name,
        "method_settings": dataclasses.asdict(config.method),  # type: ignore[call-overload]
        # A folder's name alone: a card travels, and nobody else has this machine's paths.
        "data": Path(config.data.data).name if config.data.data else "the embedded images",
        "recipe": config.data.recipe,
        **({"num_views": views} if (views := config.data.num_views) else {}),
        "preset": preset,
        "divergences": divergences,
        **({"total_steps": steps} if (steps := config.run.total_steps) else {"epochs": config.run.epochs}),
        "batch_size": config.run.batch_size,
        "step": step,
        "init": Path(config.run.init).name if config.run.init else "",
        "metrics": _metrics(run, step),
        "checkpoint": trained.checkpoint.name,
    }


def _metrics(run: Path, step: int) -> dict[str, float]:
    """The last row of training and the last of evaluation up to ``step``; empty where the run's log is not there."""
    if not (run / metrics.FILE).is_file():
        return {}
    rows = [row for row in metrics.read(run) if row.get("step", step + 1) <= step]
    trained = next((row for row in reversed(rows) if "total" in row), {})
    evaluated = next((row for row in reversed(rows) if "total" not in row), {})
    both = {"loss" if name == "total" else name: value for name, value in {**trained, **evaluated}.items()}
    passing = ("images_per_s", "data_wait", "lr", "epoch", "step")
    return {name: value for name, value in both.items() if name not in passing and isinstance(value, int | float)}


def _training(card: dict[str, Any]) -> str:
    if "epochs" not in card and "total_steps" not in card:
        return "not recorded"
    told = f"{card['total_steps']:,} steps" if "total_steps" in card else f"{card['epochs']} epochs"
    told += f", total batch {card['batch_size']}" if "batch_size" in card else ""
    views = f"{card['num_views']} views" if "num_views" in card else "views"
    return told + (f", {views} by the {card['recipe']} recipe" if "recipe" in card else "")


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _pixels(card: dict[str, Any]) -> str:
    if "modality" in card:
        return f"{INPUTS[card['modality']].format(**card['pair'])} `encoder.preprocess` makes it."
    mean, std = (" ".join(f"{value:g}" for value in card[name]) for name in ("mean", "std"))
    return (
        f"RGB from 0 to 1; short side to {card['resize']} px by antialiased {card['interpolation']} interpolation, "
        f"centre crop of {card['crop']} px, minus mean {mean}, divided by standard deviation {std}."
    )
