"""``fastvicreg train``: a preset, then a saved config, then the options given, each overriding the one before."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastvicreg import config_file, encoders, methods
from fastvicreg.commandline import flag_value, gathered, parse, with_parts
from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.presets import PRESETS, preset
from fastvicreg.train import steps
from fastvicreg.unmeant import refuse_unmeant

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Endings of files that hold weights."""

TAKERS = {"--eta": ("lars",), "--sgd-momentum": ("lars", "sgd"), "--kernel lars": ("lars",)}
"""Options that some optimizers alone take."""


@dataclass(frozen=True)
class TrainOptions:
    """Train an encoder without labels, by VICReg or another method. Every field of a preset can be overridden.

    The defaults shown are those of a run with --data (--preset imagenet-100ep), or of a --preset given with --help.
    """

    preset: Annotated[
        str | None,
        tyro.conf.arg(help=f"imagenet-100ep is the default with --data, demo without: {', '.join(PRESETS)}."),
    ] = None
    config: str | None = None
    """Start from a saved config: a JSON file or a run's folder."""
    out: str | None = None
    """The run's folder; default runs/PRESET-DATE-TIME."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, mid-epoch; starts at 0 where there is none."""
    print_config: bool = False
    """Show the resulting config as JSON and stop."""
    method: Annotated[
        str | None,
        tyro.conf.arg(help=f"{', '.join(methods.METHODS)}; --method NAME --help shows its own settings."),
    ] = None
    step: Annotated[
        str | None,
        tyro.conf.arg(help=f"How a step is run: {', '.join(steps.STEPS)}; --step NAME --help shows its own settings."),
    ] = None
    settings: TrainConfig = field(default_factory=TrainConfig)


def main(arguments: Sequence[str]) -> int:
    """Parse, show or train; returns the exit code."""
    options = options_of(list(arguments))
    options.settings.check()
    if not options.resume:
        refuse_unmeant(options.settings)
    if options.print_config:
        print(config_file.to_json(options.settings))
        return 0
    if options.resume and options.out is None:
        raise UserError("--resume needs --out RUN: the folder of the run to continue.")
    out = Path(options.out or f"runs/{options.preset}-{time.strftime('%Y%m%d-%H%M%S')}")

    # torch is imported only here: help and mistakes in the options answer at once.
    from rich.console import Console

    from fastvicreg.show.display import Display
    from fastvicreg.stalls import FIRST, watching
    from fastvicreg.train.distributed import launched, leave
    from fastvicreg.train.run_folder import save_preset
    from fastvicreg.train.signals import exit_code
    from fastvicreg.train.trainer import Trainer

    processes = launched()
    display = Display(Console(quiet=not processes.main))
    notes, told = [*methods.notes_of(options.settings.method)], list[str]()
    if options.settings.data.data is None:
        notes.insert(0, "no --data given: training on the embedded images; --data FOLDER takes your own.")
    if options.preset in PRESETS and not options.config:
        told = told_of_preset(options.preset, options.settings)
        notes += [f"{options.preset}: {line}" for line in told]
    try:
        with watching(options.settings.data.stall_timeout) as watch:
            watch("opening the data", factor=FIRST)
            trainer = Trainer(options.settings, out, resume=options.resume, display=display, watch=watch)
            for note in notes:  # only now: what cannot be run is told alone
                display.note(note)
            if processes.main and options.preset in PRESETS and not options.config:
                save_preset(out, options.preset, told)
            outcome = trainer.train()
    except UserError as error:
        raise error if processes.main else UserError(f"process {processes.rank}: {error}") from error
    finally:
        leave()
    if outcome.signal:
        again = "fastvicreg train" if processes.world_size == 1 else "torchrun ... -m fastvicreg train"
        display.note(f"stopped at step {outcome.step}; continue with: {again} --resume --out {out}")
        return exit_code(outcome.signal)
    if outcome.step < outcome.total:  # saved with the run, so that --resume alone would end here again
        ended = f"ended by --steps {options.settings.run.steps} of the run's {outcome.total:,} steps"
        display.note(f"{ended}; all of them: fastvicreg train --resume --steps 0 --out {out}")
    display.note(f"done: {outcome.step} steps; run, checkpoints and metrics in {out}")
    labelled = " --val-data FOLDER" if outcome.no_knn else ""
    evaluation = f"retrieval {out}" if options.settings.pair.pair else f"knn {out}{labelled}"
    display.note(f"next: fastvicreg eval {evaluation}   or: tensorboard --logdir {out}")
    return 0


def told_of_preset(name: str, own: TrainConfig) -> list[str]:
    """Where the preset departs from its source, and what of it another method or family of encoders leaves behind."""
    made = preset(name)
    told = made.told(own)
    if made.config.method.name != own.method.name:
        told = [
            f"made for {made.config.method.name}; of it, --method {own.method.name} keeps data, encoder and schedule"
        ]
    if type(own.encoder) is not type(made.config.encoder):
        told.append(f"made for {made.config.encoder.arch}; --arch {own.encoder.arch} has its family's own settings")
    return told


def options_of(arguments: list[str]) -> TrainOptions:
    """Fill the defaults from preset or saved config, then parse."""
    for flag in ("--log", "--kernel"):
        arguments = gathered(arguments, flag)
    name, saved, out = (flag_value(arguments, flag) for flag in ("--preset", "--config", "--out"))
    if name and saved:
        raise UserError(f"--preset {name} and --config {saved} both set every field: give one of them.")
    if saved and Path(saved).suffix in WEIGHTS:
        raise UserError(f"--config {saved} holds weights, not settings: give a run's folder or its config.json.")
    if out and Path(out).is_file():
        raise UserError(f"--out {out} is a file, not a run: give a folder.")
    resumed = out and "--resume" in arguments and (Path(out) / "config.json").is_file()
    if saved or (resumed and not name):
        settings = config_file.load(saved or out or "")
        name = name or "config"
    else:
        own_images = flag_value(arguments, "--data") or {"--help", "-h"} & set(arguments)
        name = name or ("imagenet-100ep" if own_images else "demo")
        settings = preset(name).config
    settings = _with_other_lengths(_with_parts(settings, arguments), arguments)
    options = _parsed(arguments, name, settings)
    _require_paths(options)
    _require_takers(options.settings, arguments)
    from fastvicreg.pipelines.fetch import is_remote  # only here: help, which ends above, needs none of it

    data = options.settings.data
    # Absolute, so that the saved run can be resumed and evaluated from anywhere.
    given = (("data", data.data), ("val_data", data.val_data), ("val_labels", data.val_labels))
    paths = {key: os.path.abspath(value) if value and not is_remote(value) else value for key, value in given}
    run = options.settings.run
    run = replace(run, init=run.init and os.path.abspath(run.init))
    return replace(options, settings=replace(options.settings, data=replace(data, **paths), run=run))


def _with_parts(settings: TrainConfig, arguments: list[str]) -> TrainConfig:
    """``settings`` with the method, step and family of encoders asked for, at their defaults where they change.

    ``UserError`` for a name that there is not.
    """
    if name := flag_value(arguments, "--method"):
        kind = methods.config_class(name)
        if type(settings.method) is not kind:
            settings = replace(settings, method=kind())
    if name := flag_value(arguments, "--step"):
        kind = steps.config_class(name)
        if type(settings.step) is not kind:
            settings = replace(settings, step=kind())
    if arch := flag_value(arguments, "--arch"):
        kind = encoders.config_class(arch)
        if type(settings.encoder) is not kind:
            settings = replace(settings, encoder=kind(arch=arch))
    return settings


def _with_other_lengths(settings: TrainConfig, arguments: list[str]) -> TrainConfig:
    """``settings`` without the length that overrules one that is given: a preset's share of warm-up, a config's steps.

    Where both are given on the command line their own rule holds.
    """
    for section, overruling, flag in (("optim", "warmup_share", "--warmup-epochs"), ("run", "total_steps", "--epochs")):
        other = flag_value(arguments, "--" + overruling.replace("_", "-"))
        if flag_value(arguments, flag) is not None and other is None:
            part = replace(getattr(settings, section), **{overruling: 0})
            settings = replace(settings, **{section: part})
    return settings


def _require_paths(options: TrainOptions) -> None:
    """``UserError`` for a path that is given and empty, as a shell's variable is that was never set."""
    data, run = options.settings.data, options.settings.run
    for flag, path in (
        ("--data", data.data),
        ("--val-data", data.val_data),
        ("--val-labels", data.val_labels),
        ("--init", run.init),
        ("--out", options.out),
        ("--config", options.config),
    ):
        if path is not None and not path.strip():
            raise UserError(f"{flag} is empty: give a path, or leave it out.")


def _require_takers(settings: TrainConfig, arguments: list[str]) -> None:
    """``UserError`` for an option of another optimizer, which would be passed over; a preset may hold such a value."""
    given = {flag: flag_value(arguments, flag) for flag in ("--eta", "--sgd-momentum")}
    words = settings.run.kernel if flag_value(arguments, "--kernel") else ()
    given["--kernel lars"] = next((word[5:] for word in words if word.startswith("lars=")), None)
    for flag, value in given.items():
        if value in (None, "auto") or settings.optim.optimizer in TAKERS[flag]:
            continue
        joined = f"{flag}{'=' if ' ' in flag else ' '}{value}"
        takers = " and ".join(TAKERS[flag])
        raise UserError(f"{joined} is of --optimizer {takers}, not of {settings.optim.optimizer}: leave it out.")


def _parsed(arguments: list[str], name: str, settings: TrainConfig) -> TrainOptions:
    """With the options of the chosen parts alone. ``UserError`` in one line for what is refused."""
    sections = {section.name: getattr(settings, section.name) for section in fields(TrainConfig)}
    kind = with_parts(TrainOptions, settings=with_parts(TrainConfig, **sections)())
    default = kind(preset=name, method=settings.method.name, step=settings.step.name)
    try:
        options: Any = parse(kind, arguments, "train", default=default)
    except UserError as error:
        raise UserError(_foreign(str(error), settings) or str(error)) from None
    parsed = TrainConfig(**{key: getattr(options.settings, key) for key in sections})
    own = {item.name: getattr(options, item.name) for item in fields(TrainOptions) if item.name != "settings"}
    return TrainOptions(**own, settings=parsed)


def _foreign(message: str, settings: TrainConfig) -> str:
    """A line on an option of another method or step, where ``message`` refuses one."""
    if not (found := re.match(r"unknown option --([a-z-]+)", message)):
        return ""
    flag = found.group(1)
    name = flag.removeprefix("no-").replace("-", "_")
    for part, owner_of, own in (
        ("method", methods.owner_of, settings.method.name),
        ("step", steps.owner_of, settings.step.name),
        ("arch", encoders.owner_of, settings.encoder.arch),
    ):
        if owner := owner_of(name):
            return f"--{flag} is a setting of {owner}, not of {own}: give --{part} {owner}, or leave it out."
    return ""
