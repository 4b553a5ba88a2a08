"""The step benchmark: a preset's whole update on views already on the device, by every way to run it.

Beside them the step as the official main_vicreg.py has it, written out with this project's reference parts: NCHW,
torch's batch norms, the official loss and LARS; on CUDA under fp16 autocast. It gets the same views, on the device.
``against`` adds the steps of other libraries' own parts (peers_step.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Batch, Cursor, Encoder, Terms
from fastvicreg.errors import UserError
from fastvicreg.methods.settings import takes_places
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.presets import preset as named_preset
from fastvicreg.profiles.bench.peers_step import PeerStep, installed, peer_step
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions, Picture
from fastvicreg.profiles.bench.step_variants import BARE, WHOLE, BareStep, Case, cases, chosen_of, widened
from fastvicreg.profiles.measure import Instant, interleaved, milliseconds, now, summarize, synchronize
from fastvicreg.train.assemble import as_module, build_step
from fastvicreg.train.device import AUTOCAST, exact_products, search_convolutions
from fastvicreg.train.memory import predict
from fastvicreg.train.steps import config_class
from fastvicreg.train.steps.eager.step import EagerStep

COLUMNS = (
    *(
        "variant",
        "preset",
        "batch",
        "precision",
        "ms",
        "spread",
        "repeats",
        "views_per_s",
        "ratio",
        "kept_mb",
        "peak_bytes",
    ),
    *("forward_ms", "loss_ms", "backward_ms", "optimizer_ms", "note"),
)

PRESET = {"cpu": "demo", "cuda": "imagenet-100ep"}
BATCH = {"cpu": 64, "cuda": 256}
STAGES = ("forward", "loss", "backward", "optimizer")
STAGED = ("eager", "compiled")
"""Ways to run a step whose stages pass one after another, under the host's eyes."""


def run(
    preset: str | None = None,
    device: str = "cpu",
    batch: int = 0,
    size: int = 0,
    repeats: int = 5,
    only: tuple[str, ...] = (),
    against: tuple[str, ...] = (),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row for every way to run a step of the named ``preset`` on ``batch`` images of two views.

    By default a ResNet-50 at 224 pixels and a batch of 256 on CUDA, the demo's network and a batch of 64 on the CPU.
    ``ms`` is of forward, loss, backward and update; ``ratio`` how many times faster than "official"; ``kept_mb`` what
    backward needs of a source image, as ``train.memory`` foretells it; ``peak_bytes`` what a step allocates beyond
    weights, gradients and momentum, None on the CPU. The stages' times are of steps of their own, on CUDA the device's,
    by events; the finite gate counts as the optimizer's. ``only`` some of the variants; ``against`` others' steps come
    first, official, lightly or solo. ``over_parts`` is what the step takes beside its parts, as a share. ``note`` says
    why one does not run here. ``UserError`` for an unknown variant, and where the device's memory does not hold a step.
    """
    kind = device.split(":")[0]
    name, batch = preset or PRESET[kind], batch or BATCH[kind]
    config = named_preset(name).config
    config = replace(config, data=replace(config.data, image_size=size or config.data.image_size))
    config = replace(config, run=replace(config.run, seed=seed, batch_size=batch))
    chosen = chosen_of(cases(kind), only, against)
    if any(case.peer for case in chosen.values()) and not isinstance(config.method, VICRegConfig):
        raise UserError(f"--against {' '.join(against)} trains VICReg, and --preset {name} does not: leave one out.")
    search_convolutions(device)
    try:
        subjects, refused = _subjects(config, chosen, device, batch)
        peaks = {variant: peak_bytes(one, device) for variant, one in subjects.items()}
        timings = interleaved(subjects, repeats=repeats, device=device)
        stages = {variant: _stages(one, repeats) for variant, one in subjects.items()}
    except torch.OutOfMemoryError as error:
        what = f"{name} with a batch of {batch}"
        raise UserError(f"the device's memory does not hold {what}: give a smaller --batch.") from error
    first = next(iter(timings), None)
    rows = []
    for variant, case in chosen.items():
        row: dict[str, Any] = {
            "preset": name,
            "arch": config.encoder.arch,
            "batch": batch,
            "size": config.data.image_size,
            "variant": variant,
            "precision": case.precision,
            "device": device,
        }
        if variant in refused:
            rows.append(row | {"note": refused[variant]})
            continue
        timing = timings[variant]
        rows.append(
            row
            | {
                "ms": timing.ms,
                "spread": timing.spread,
                "repeats": timing.n,
                "views_per_s": 2 * batch / timing.ms * 1e3,
            }
            | {"ratio": timings[first].ms / timing.ms if first else None, "peak_bytes": peaks[variant]}
            | stages[variant]
        )
        if case.peer:
            rows[-1]["note"] = installed(case.peer)
        else:
            kept = predict(_config(config, case), batch, precision=case.precision).kept
            rows[-1]["kept_mb"] = kept / batch / 1e6
        if variant == WHOLE and BARE in timings:
            over = rows[-1]["over_parts"] = timing.ms / timings[BARE].ms - 1
            rows[-1]["note"] = f"{over:+.1%} over its parts alone"
    return rows


def _subjects(
    config: TrainConfig, chosen: dict[str, Case], device: str, batch: int
) -> tuple[dict[str, Subject | PeerStep], dict[str, str]]:
    """Those that run here, each having done so, and why the others do not."""
    subjects: dict[str, Subject | PeerStep] = {}
    refused: dict[str, str] = {}
    for variant, case in chosen.items():
        try:
            subject = build_peer(config, case, device, batch) if case.peer else build_case(config, case, device, batch)
            subject()
        except UserError as error:
            refused[variant] = str(error)
        else:
            subjects[variant] = subject
    return subjects, refused


@dataclass
class Subject:
    """A step that is called without arguments, and the moments that its last call passed."""

    step: EagerStep
    batch: Batch
    device: str
    staged: bool
    passed: dict[str, Instant] = field(default_factory=dict)

    def __call__(self) -> None:
        exact_products(self.step.precision)
        self.step(self.batch, {"lr": 0.0})

    def mark(self, stage: str) -> Callable[..., None]:
        """A hook of any kind that notes the moment at which it is called, the last time."""

        def hook(*_: Any) -> None:
            self.passed[stage] = now(self.device)

        return hook


def _config(config: TrainConfig, case: Case) -> TrainConfig:
    run = replace(
        config.run,
        views=case.views,
        activations=case.activations,
        recompute_stages=case.recompute_stages,
        kernel=case.kernel,
    )
    return replace(config, run=run, step=config_class(case.step)())


def build_case(config: TrainConfig, case: Case, device: str, batch: int) -> Subject:
    step = build_step(_config(config, case), device=device, precision=case.precision, own_norms=case.own_norms)
    if case.bare:
        step = BareStep(step.method, step.updater, device=device, precision=case.precision, world_size=1)
    as_module(step.method).to(memory_format=case.memory_format)  # type: ignore[call-overload]
    side = config.data.image_size
    # As the augmentation hands them over: in the precision's own type.
    views = torch.randn(2, batch, 3, side, side, device=device).to(AUTOCAST[case.precision] or torch.float32)
    if case.stem > views.shape[2]:
        views = widened(step.method, views.unbind(), case.stem)
    ordered = tuple(view.contiguous(memory_format=case.memory_format) for view in views)
    numbers = torch.arange(batch)
    whole = torch.tensor([0.0, 0.0, side, side, 0.0], device=device)
    places_BV5 = whole.expand(batch, 2, 5) if takes_places(config.method) else None
    data = Batch(ordered, numbers, torch.full_like(numbers, -1), Cursor(0, 0), places_BV5)
    return Subject(step, data, device, case.step in STAGED)


def build_peer(config: TrainConfig, case: Case, device: str, batch: int) -> PeerStep:
    ours = build_case(config, case, device, batch)
    encoder = ours.step.method.encoders["encoder"]
    assert isinstance(config.method, VICRegConfig)
    features = cast(Encoder, encoder).features
    return peer_step(case.peer, encoder, features, config.method.expander, ours.batch.views, case.precision)


def _stages(subject: Subject | PeerStep, repeats: int) -> dict[str, float]:
    """Median milliseconds by stage; none where they do not pass one after another."""
    if isinstance(subject, PeerStep) or not subject.staged:
        return {}
    step, method = subject.step, subject.step.method

    def marked_loss(embeddings: Any, targets: Any) -> Terms:
        subject.mark("forward")()
        terms = method.loss(embeddings, targets)
        subject.mark("loss")()
        return terms

    staged = replace(subject, step=step.replaced(loss=marked_loss))
    weights = [param for group in method.param_groups() for param in group.params]
    hook = torch.autograd.graph.register_multi_grad_hook(weights, subject.mark("backward"))
    samples: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in range(repeats):
        began = now(subject.device)
        staged()
        subject.passed["optimizer"] = now(subject.device)
        synchronize(subject.device)
        for stage in STAGES:
            samples[stage].append(milliseconds(began, subject.passed[stage]))
            began = subject.passed[stage]
    hook.remove()
    return {f"{stage}_ms": summarize(values).ms for stage, values in samples.items()}


def peak_bytes(call: Callable[[], None], device: str) -> int | None:
    """What a call allocates beyond what is held; None on the CPU."""
    if not device.startswith("cuda"):
        return None
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held


@dataclass(frozen=True)
class BenchOptions(DeviceOptions):
    """A preset's whole update."""

    preset: str | None = None
    """Default: demo on the CPU, imagenet-100ep on CUDA."""
    batch: int = 0
    """Images of a step; default 64 on the CPU, 256 on CUDA."""
    only: tuple[str, ...] = ()
    """Some of the variants, by name, such as --only eager compiled."""
    against: tuple[str, ...] = ()
    """Others' steps, by their own parts: official, lightly, solo; default the official one."""


BENCHMARK = Benchmark(
    run,
    COLUMNS,
    key=("preset", "batch", "variant"),
    picture=Picture(("variant",), "views_per_s", lambda row: "ms" not in row),
    options=BenchOptions,
)
