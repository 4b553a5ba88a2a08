"""The ways to run a step that ``bench step`` compares, and which of them are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Method, Terms
from fastvicreg.errors import UserError
from fastvicreg.profiles.bench.peers_step import PEERS
from fastvicreg.train.steps.eager.step import EagerStep


@dataclass(frozen=True)
class Case:
    """One row: how a step is run, beside its precision."""

    step: str = "eager"
    precision: str = "off"
    views: str = "separate"
    activations: str = "keep"
    recompute_stages: tuple[int, ...] = ()
    own_norms: bool = True
    memory_format: torch.memory_format = torch.channels_last
    kernel: tuple[str, ...] = ()
    bare: bool = False
    """The step's parts with nothing around them: neither running statistics kept nor a finite gate."""
    stem: int = 3
    """Channels that the first convolution takes, of which those beyond an image's three are 0."""
    peer: str = ""
    """Whose projector, loss and LARS it has in place of ours."""


OFFICIAL, WHOLE, BARE = "official", "eager, joint views", "eager, joint views, parts alone"
FOUR = "eager, joint views, stem on 4 channels"
BLOCKS = "eager, joint views, blocks recomputed"


class BareStep(EagerStep):
    """Forward pass, loss, gradients and the optimizer's step, as a training loop of the fewest lines has them."""

    def _run(self, views: tuple[Tensor, ...], scalars: Mapping[str, float | Tensor]) -> Terms:
        self.updater.optimizer.zero_grad(set_to_none=True)
        terms = self._gradients(views)
        self.updater.optimizer.step()
        return terms


def widened(method: Method, views: Sequence[Tensor], channels: int) -> list[Tensor]:
    """``views`` (B, 3, H, W) with channels of 0 behind their own; the network's first convolution takes them.

    Before the first step: weights for these channels are 0, and so are their gradients. ``UserError`` where the network
    begins with another layer.
    """
    convolution = getattr(method.encoders["encoder"], "conv1", None)
    if not isinstance(convolution, nn.Conv2d):
        raise UserError("this encoder has no stem that more channels could be given to.")
    more = channels - views[0].shape[1]
    layout = torch.channels_last
    convolution.weight.data = F.pad(convolution.weight.data, (0, 0, 0, 0, 0, more)).contiguous(memory_format=layout)
    convolution.in_channels = channels
    return [F.pad(view, (0, 0, 0, 0, 0, more)).contiguous(memory_format=layout) for view in views]


def cases(kind: str) -> dict[str, Case]:
    """What is measured on a CPU or on CUDA, by name; the first is what the others are compared with."""
    reference = Case(
        own_norms=False,
        memory_format=torch.contiguous_format,
        kernel=("loss=reference", "lars=reference", "norm=native"),
    )
    if kind == "cpu":
        return {
            OFFICIAL: reference,
            "torch's norms": Case(own_norms=False),
            "eager": Case(),
            WHOLE: Case(views="joint"),
            BARE: Case(views="joint", bare=True),
            FOUR: Case(views="joint", stem=4),
            BLOCKS: Case(views="joint", recompute_stages=(1, 2, 3, 4)),
            "eager, bf16": Case(precision="bf16"),
            "compiled": Case("compiled"),
            f"{OFFICIAL}, compiled": replace(reference, step="compiled"),
            "cached": Case("cached"),
            "cached, joint views": Case("cached", views="joint"),
        }
    best = Case(precision="bf16", views="joint")
    return {
        OFFICIAL: replace(reference, precision="fp16"),
        "torch's norms": replace(best, views="separate", own_norms=False),
        "eager": replace(best, views="separate"),
        WHOLE: best,
        BARE: replace(best, bare=True),
        FOUR: replace(best, stem=4),
        "eager, joint views, recomputed": replace(best, activations="recompute"),
        BLOCKS: replace(best, recompute_stages=(1, 2, 3, 4)),
        "eager, joint views, fp16": replace(best, precision="fp16"),
        "eager, joint views, tf32": replace(best, precision="tf32"),
        "eager, joint views, fp32": replace(best, precision="off"),
        "graphed, joint views": replace(best, step="graphed"),
        "cached, joint views": replace(best, step="cached"),
        "compiled, joint views": replace(best, step="compiled"),
        f"{OFFICIAL}, compiled": replace(reference, precision="fp16", step="compiled"),
    }


def chosen_of(known: dict[str, Case], only: tuple[str, ...], against: tuple[str, ...]) -> dict[str, Case]:
    """What is measured: others' steps first, of which the official one is measured unless another is asked for."""
    others = (OFFICIAL, *PEERS)
    if unknown := [name for name in against if name not in others]:
        raise UserError(f"--against {unknown[0]!r} is no step of others: choose from {', '.join(others)}.")
    if unknown := [variant for variant in only if variant not in known]:
        raise UserError(f"--only {unknown[0]!r} is no variant: choose from {', '.join(map(repr, known))}.")
    first = {name: known[OFFICIAL] if name == OFFICIAL else replace(known[OFFICIAL], peer=name) for name in against}
    left = {variant: case for variant, case in known.items() if not (against and variant.startswith(OFFICIAL))}
    return first | {variant: case for variant, case in (known if only else left).items() if not only or variant in only}
