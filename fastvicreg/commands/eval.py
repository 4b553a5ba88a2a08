"""``fastvicreg eval PROTOCOL RUN --data PATH``: what a run's frozen features are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from fastvicreg.commandline import parse, with_parts
from fastvicreg.errors import UserError
from fastvicreg.evaluate.protocols import PROTOCOLS, protocol_class


@dataclass(frozen=True)
class EvalOptions:
    """Classify a run's frozen features; eval PROTOCOL --help shows a protocol's own settings."""

    protocol: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help=f"{', '.join(PROTOCOLS)}.")]
    run: Annotated[str, tyro.conf.Positional]
    """The run's folder, or a file of weights (an export, or a checkpoint of VICReg, solo-learn, torchvision ...)."""
    data: str | None = None
    """Folder with train/ and val/ (or test/); default: the data the run was trained on."""
    val_data: str | None = None
    """Labelled images to classify, where they do not lie in --data as val/ or test/."""
    checkpoint: str | None = None
    """Number of steps (500), name (step-00000500) or folder of the checkpoint; default: the newest whole one."""
    arch: str | None = None
    """Architecture that a file of weights must have; default: the one that its shapes tell."""
    stem: str | None = None
    """What a 3x3 stem in a file of weights was, where its layout does not tell: 3x3, 3x3s2 or 3x3p2."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = 0
    """Decoding threads; 0: one a core."""
    json: str | None = None
    """Write the figures to this file."""
    settings: Any = field(default=None)


def main(arguments: Sequence[str]) -> int:
    """Print one accuracy; returns the exit code."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    named = next((word for word in words if word in PROTOCOLS), words[0] if words else None)
    asked = {"-h", "--help"} & set(arguments)
    if named is None and not asked:
        raise UserError(f"give fastvicreg eval PROTOCOL RUN [OPTIONS]; the protocols are {', '.join(PROTOCOLS)}.")
    name = named or next(iter(PROTOCOLS))
    options: Any = parse(with_parts(EvalOptions, settings=protocol_class(name)()), arguments, "eval")

    from fastvicreg.evaluate.frozen import Evaluation, evaluate_run

    kept = {part.name: getattr(options, part.name) for part in dataclasses.fields(Evaluation)}
    result = {"protocol": name, **dataclasses.asdict(options.settings)}
    result |= evaluate_run(Evaluation(**kept), options.settings)
    print(
        f"{name}: {result['accuracy']:.2f} % of {result['queries']:,} images, from a bank of "
        f"{result['bank']:,} in {result['classes']} classes ({result['checkpoint']})"
    )
    for note in result["notes"]:
        print(note)
    if result["passed_over"]:
        print(f"{result['passed_over']}: what was evaluated is older.")
    if result["faults"]:
        print(f"{result['faults']} images could not be read; a neighbour stands for each.")
    if options.json:
        from fastvicreg.provenance import document, write_json

        write_json(options.json, document(f"eval {name}", [result], 1))
    return 0
