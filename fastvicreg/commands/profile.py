"""``fastvicreg profile``: a trace of a run, or of one of its parts alone, where TensorBoard finds it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastvicreg.commands.as_train import parse_as_train
from fastvicreg.errors import UserError


@dataclass(frozen=True)
class ProfileOptions:
    """Profile a run, or one part of it, for a few steps.

    All options of ``fastvicreg train`` apply; --out is the run's folder, whose tensorboard/ receives the trace.
    """

    part: str | None = None
    """loader, augment, loss, lars or step, alone; default: the whole run."""
    wait: int = 5
    """Steps before anything is measured; then come at least 10 timed without the profiler."""
    warmup: int = 2
    """Steps with the profiler on that are not kept."""
    active: int = 5
    """Steps that are captured."""
    stacks: bool = False
    """Record Python stacks as well: a larger trace and a larger overhead."""
    memory: bool = False
    """Record allocations, but none of the engine's threads."""
    json: str | None = None
    """Write the figures to this file too; they are always written beside the trace."""


def main(arguments: Sequence[str]) -> int:
    """Capture, and say where the trace is; returns the exit code."""
    options, train = parse_as_train(ProfileOptions, arguments, "profile")
    for flag, value, least in (("wait", options.wait, 0), ("warmup", options.warmup, 1), ("active", options.active, 1)):
        if value < least:
            raise UserError(f"--{flag} {value}: give {least} or more.")
    out = Path(train.out or f"runs/profile-{train.preset}-{time.strftime('%Y%m%d-%H%M%S')}")

    from fastvicreg.profiles.capture import Settings, capture
    from fastvicreg.provenance import write_json
    from fastvicreg.show.display import Display
    from fastvicreg.train.distributed import launched, leave

    settings = Settings(options.wait, options.warmup, options.active, options.stacks, options.memory)
    try:
        captured = capture(train.settings, out / "tensorboard", part=options.part, settings=settings)
    finally:
        leave()
    if not launched().main:
        return 0
    if options.json:
        write_json(options.json, json.loads(captured.sidecar.read_text()))
    plain, profiled = captured.plain, captured.profiled
    note = Display().note
    note(
        f"{options.part or 'run'}: {plain.ms:.2f} ms a step without the profiler (median of {plain.n}, spread "
        f"{plain.spread:.0%}), {profiled.ms:.2f} ms with it (of {profiled.n}): overhead {captured.overhead_said}"
    )
    note(f"trace: {captured.trace} ({captured.trace.stat().st_size / 1e6:.1f} MB)")
    note(f"config, versions and step times: {captured.sidecar}")
    note(f"next: fastvicreg trace summary {captured.trace}   or: tensorboard --logdir {out}")
    return 0
