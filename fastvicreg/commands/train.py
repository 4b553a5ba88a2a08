"""``fastvicreg train``: a preset, then a saved config, then the options given, each overriding the one before."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastvicreg import config as configs
from fastvicreg.commandline import flag_value, parse
from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.presets import PRESETS, preset


@dataclass(frozen=True)
class TrainOptions:
    """Train an encoder with VICReg. Every field of a preset can be overridden."""

    preset: str | None = None
    """imagenet-1000ep, imagenet-100ep (default with --data), cifar10, solo-cifar10, demo (default without)."""
    config: str | None = None
    """Start from a saved config: a JSON file or a run's folder."""
    out: str | None = None
    """The run's folder; default runs/PRESET-DATE-TIME."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, mid-epoch; starts at 0 where there is none."""
    print_config: bool = False
    """Show the resulting config as JSON and stop."""
    settings: TrainConfig = field(default_factory=TrainConfig)


def main(arguments: Sequence[str]) -> int:
    """Parse, show or train; returns the exit code."""
    options = options_of(list(arguments))
    configs.check(options.settings)
    if options.print_config:
        print(configs.to_json(options.settings))
        return 0
    if options.resume and options.out is None:
        raise UserError("--resume needs --out RUN: the folder of the run to continue.")
    out = Path(options.out or f"runs/{options.preset}-{time.strftime('%Y%m%d-%H%M%S')}")

    # torch is imported only here: help and mistakes in the options answer at once.
    from rich.console import Console

    from fastvicreg.display import Display
    from fastvicreg.distributed import launched, leave
    from fastvicreg.trainer import Trainer

    processes = launched()
    display = Display(Console(quiet=not processes.main))
    if options.settings.data.data is None:
        display.note("no --data given: training on the embedded images; --data FOLDER takes your own.")
    if options.preset in PRESETS and not options.config:
        for divergence in preset(options.preset).divergences:
            display.note(f"{options.preset}: {divergence}")
    try:
        outcome = Trainer(options.settings, out, resume=options.resume, display=display).train()
    except UserError as error:
        raise error if processes.main else UserError(f"process {processes.rank}: {error}") from error
    finally:
        leave()
    if outcome.signal:
        again = "fastvicreg train" if processes.world_size == 1 else "torchrun ... -m fastvicreg train"
        display.note(f"stopped at step {outcome.step}; continue with: {again} --resume --out {out}")
        return 128 + outcome.signal
    display.note(f"done: {outcome.step} steps; run, checkpoints and metrics in {out}")
    display.note(f"next: fastvicreg eval knn {out}   or: tensorboard --logdir {out}")
    return 0


def options_of(arguments: list[str]) -> TrainOptions:
    """Fill the defaults from preset or saved config, then parse."""
    name, saved, out = (flag_value(arguments, flag) for flag in ("--preset", "--config", "--out"))
    if name and saved:
        raise UserError(f"--preset {name} and --config {saved} both set every field: give one of them.")
    resumed = out and "--resume" in arguments and (Path(out) / "config.json").is_file()
    if saved or (resumed and not name):
        settings = configs.load(saved or out or "")
        name = name or "config"
    else:
        name = name or ("imagenet-100ep" if flag_value(arguments, "--data") else "demo")
        settings = preset(name).config
    options = parse(TrainOptions, arguments, "train", default=TrainOptions(preset=name, settings=settings))
    data = options.settings.data
    # Absolute, so that the saved run can be resumed and evaluated from anywhere.
    given = (("data", data.data), ("val_data", data.val_data), ("val_labels", data.val_labels))
    paths = {key: value and os.path.abspath(value) for key, value in given}
    return replace(options, settings=replace(options.settings, data=replace(data, **paths)))
