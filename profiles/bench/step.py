"""The step benchmark: a preset's whole update on views already on the device, by memory order and precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastvicreg.config import TrainConfig, kernel_choices
from fastvicreg.contracts import Batch, Cursor, Terms
from fastvicreg.errors import UserError
from fastvicreg.presets import preset as named_preset
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions, Picture
from fastvicreg.profiles.measure import Instant, interleaved, milliseconds, now, summarize, synchronize
from fastvicreg.train.assemble import as_module, build_method, build_optimizer
from fastvicreg.train.steps.eager import AUTOCAST, EagerStep
from fastvicreg.train.updater import Updater

COLUMNS = (
    *("preset", "batch", "precision", "memory_format", "ms", "spread", "repeats", "images_per_s", "ratio"),
    *("peak_bytes", "forward_ms", "loss_ms", "backward_ms", "optimizer_ms"),
)

PRESET = {"cpu": "demo", "cuda": "imagenet-100ep"}
BATCH = {"cpu": 64, "cuda": 256}
PRECISIONS = {"cpu": ("off", "bf16"), "cuda": ("off", "bf16", "fp16")}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
STAGES = ("forward", "loss", "backward", "optimizer")


def run(
    preset: str | None = None, device: str = "cpu", batch: int = 0, size: int = 0, repeats: int = 5, seed: int = 0
) -> list[dict[str, Any]]:
    """One row for every memory order and precision, of the named ``preset``.

    By default a ResNet-50 at 224 pixels and a batch of 256 on CUDA, the demo's network and a batch of 64 on the CPU.
    ``ms`` is of forward, loss, backward and update; ``ratio`` how many times faster than the first row's;
    ``peak_bytes`` what a step allocates beyond weights, gradients and momentum, None on the CPU. The stages' times are
    of steps of their own, on CUDA the device's, by events; the finite gate counts as the optimizer's. ``UserError``
    where the device's memory does not hold a step.
    """
    kind = device.split(":")[0]
    name, batch = preset or PRESET[kind], batch or BATCH[kind]
    config = named_preset(name).config
    config = replace(config, data=replace(config.data, image_size=size or config.data.image_size))
    cases = {f"{form} {precision}": (form, precision) for precision in PRECISIONS[kind] for form in FORMATS}
    first = next(iter(cases))
    try:
        subjects = {case: _build(config, *kinds, device, batch, seed) for case, kinds in cases.items()}
        peaks = {case: _peak_bytes(one, device) for case, one in subjects.items()}
        timings = interleaved(subjects, repeats=repeats, device=device)
        stages = {case: _stages(one, repeats) for case, one in subjects.items()}
    except torch.OutOfMemoryError as error:
        what = f"{name} with a batch of {batch}"
        raise UserError(f"the device's memory does not hold {what}: give a smaller --preset.") from error
    return [
        {
            "preset": name,
            "arch": config.encoder.arch,
            "batch": batch,
            "size": config.data.image_size,
            "memory_format": cases[case][0],
            "precision": cases[case][1],
            "device": device,
            "ms": timing.ms,
            "spread": timing.spread,
            "repeats": timing.n,
            "images_per_s": batch / timing.ms * 1e3,
            "ratio": timings[first].ms / timing.ms,
            "peak_bytes": peaks[case],
            **stages[case],
        }
        for case, timing in timings.items()
    ]


@dataclass
class _Subject:
    """A step that is called without arguments, and the moments that its last call passed."""

    step: EagerStep
    batch: Batch
    device: str
    passed: dict[str, Instant] = field(default_factory=dict)

    def __call__(self) -> None:
        self.step(self.batch, {"lr": 0.0})

    def mark(self, stage: str) -> Callable[..., None]:
        """A hook of any kind that notes the moment at which it is called, the last time."""

        def hook(*_: Any) -> None:
            self.passed[stage] = now(self.device)

        return hook


def _build(config: TrainConfig, form: str, precision: str, device: str, batch: int, seed: int) -> _Subject:
    config = replace(config, run=replace(config.run, seed=seed))
    kernels, order = kernel_choices(config), FORMATS[form]
    method = build_method(config, kernels, device)
    as_module(method).to(memory_format=order)  # type: ignore[call-overload]
    optimizer = build_optimizer(
        config.optim, method.param_groups(), batch_size=config.run.batch_size, impl=kernels["lars"]
    )
    side = config.data.image_size
    # As the augmentation hands them over: in the precision's own type.
    views = torch.randn(2, batch, 3, side, side, device=device).to(AUTOCAST[precision] or torch.float32)
    ordered = tuple(view.contiguous(memory_format=order) for view in views)
    numbers = torch.arange(batch, device=device)
    updater = Updater(as_module(method), optimizer, device=device, precision=precision)
    step = EagerStep(method, updater, device=device, precision=precision)
    return _Subject(step, Batch(ordered, numbers, torch.full_like(numbers, -1), Cursor(0, 0)), device)


def _stages(subject: _Subject, repeats: int) -> dict[str, float]:
    """Median milliseconds by stage."""
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


def _peak_bytes(call: Callable[[], None], device: str) -> int | None:
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


BENCHMARK = Benchmark(
    run,
    COLUMNS,
    key=("preset", "batch", "precision", "memory_format"),
    picture=Picture(("precision", "memory_format")),
    options=BenchOptions,
)
