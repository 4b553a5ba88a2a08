"""From a config to the parts of a run: data, model, optimizer, step; the only place that knows all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from fastvicreg.config import OptimConfig, TrainConfig, kernel_choices
from fastvicreg.contracts import BuildContext, Column, Encoder, Engine, Horizon, Method, ParamGroup, Plan
from fastvicreg.datasets import Datasets, open_data, training_plan
from fastvicreg.encoders import build_encoder
from fastvicreg.errors import UserError
from fastvicreg.methods.settings import branch_of, takes_places
from fastvicreg.optim import LARS, lars_groups, spare_the_compiler, with_momenta
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.stalls import NEVER
from fastvicreg.train.batch_norm import own_group, replace_norms
from fastvicreg.train.clipping import COLUMN as CLIPPED
from fastvicreg.train.clipping import clipping_of
from fastvicreg.train.device import SLOW_FP16, exact_products, resolve_device, resolve_precision, search_convolutions
from fastvicreg.train.distributed import Processes, device_of, join, launched, together
from fastvicreg.train.drop_path import install
from fastvicreg.train.memory import fitted, shortage
from fastvicreg.train.online_probe import COLUMN, NAME, OnlineProbe
from fastvicreg.train.recomputed import recompute_stages
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater

ALONE = Processes()
HEARD = ("eager", "compiled")
"""Steps whose encoder passes are those of the batch, once, in Python."""


@dataclass(frozen=True)
class Run:
    """A run's parts, ready for the trainer; who ends it closes ``engine`` and ``data``."""

    data: Datasets
    plan: Plan
    engine: Engine
    feed: AugmentedFeed
    method: Method
    step: EagerStep
    device: str
    precision: str
    processes: Processes
    probe: OnlineProbe | None = None

    @property
    def module(self) -> nn.Module:
        """The method: all that a checkpoint holds of a network."""
        return as_module(self.method)

    @property
    def encoder(self) -> nn.Module:
        """The principal encoder: what is evaluated."""
        return next(iter(self.method.encoders.values()))

    def horizon(self, config: TrainConfig) -> Horizon:
        """The extent of the whole run, by ``config``'s steps or epochs of the engine's batches."""
        per_epoch = self.engine.batches_per_epoch(0)
        return Horizon(config.run.total_steps or config.run.epochs * per_epoch, per_epoch, config.run.batch_size)

    @property
    def columns(self) -> tuple[Column, ...]:
        """What display and log show of a step."""
        clipped = (CLIPPED,) if self.step.updater.clipping else ()
        return self.method.columns + clipped + ((COLUMN,) if self.probe else ())

    def described(self, config: TrainConfig) -> str:
        """The run in one line: method, encoders, data, pipeline, batch and device."""
        parameters = sum(p.numel() for p in self.module.parameters()) / 1e6
        arch = " and ".join((config.encoder.arch, *branch_of(config.method)[:1]))
        return (
            f"{config.method.name} · {arch}, {parameters:.2f} M parameters · "
            f"{len(self.data.train):,} images from {self.data.where} · {config.data.pipeline} pipeline · "
            f"batch {config.run.batch_size} · {self.device}, autocast {self.precision}"
        )


def build_method(config: TrainConfig, kernels: Mapping[str, str], device: str) -> Method:
    """The method with fresh weights by the run's seed, on ``device``; ``UserError`` for a setting it cannot have."""
    torch.manual_seed(config.run.seed)
    context = BuildContext(build_encoder=partial(build_encoder, config.encoder), kernels=kernels)
    try:
        method = config.method.build(context)
        module = as_module(method).to(device)
    except RuntimeError as error:
        if not re.search("allocate|out of memory|overflowed", str(error)):
            raise
        raise UserError(
            f"there is no memory for the networks of --method {config.method.name} and {config.encoder} (in torch's "
            f"words: {str(error).splitlines()[0]}): give a narrower encoder or head."
        ) from error
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def as_module(part: Method | Encoder) -> nn.Module:
    """``part`` as the ``nn.Module`` that it also is, which a protocol cannot say."""
    assert isinstance(part, nn.Module)
    return part


def build_optimizer(
    config: OptimConfig,
    param_groups: Sequence[ParamGroup],
    *,
    batch_size: int,
    impl: str = "auto",
    captured: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer that ``config`` names; only adapted groups are decayed, and by LARS adapted.

    ``batch_size``, the total, sets the learning rate of groups that stay at its peak. ``captured``: one that reads
    learning rates and ``found_inf`` on the device, for a step that is replayed.
    """
    peak = config.base_lr * batch_size / 256
    groups: list[dict[str, Any]] = []
    for rate in dict.fromkeys((group.lr_scale, group.constant_lr) for group in param_groups):
        alike = [group for group in param_groups if (group.lr_scale, group.constant_lr) == rate]
        scale, constant = rate
        own = {"lr_scale": scale} if scale != 1 else {}
        own |= {"constant_lr": peak} if constant else {}
        groups += [group | own for group in _groups(config, alike)]
    if captured:
        for group in groups:
            group["lr"] = torch.zeros((), device=group["params"][0].device)
    if config.optimizer == "lars":
        options: dict[str, Any] = {"momentum": config.sgd_momentum, "eta": config.eta, "form": config.lars_form}
        return LARS(groups, lr=0.0, weight_decay=config.weight_decay, impl=impl, capturable=captured, **options)
    spare_the_compiler()
    if config.optimizer == "sgd":
        return with_momenta(torch.optim.SGD(groups, lr=0.0, momentum=config.sgd_momentum, fused=captured))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(groups, lr=0.0, capturable=captured, fused=captured)


def _groups(config: OptimConfig, param_groups: Sequence[ParamGroup]) -> list[dict[str, Any]]:
    """The optimizer's groups for parameters of one learning rate."""
    adapted = [param for group in param_groups if group.adapted for param in group.params]
    plain = [param for group in param_groups if not group.adapted for param in group.params]
    if config.optimizer == "lars":
        return lars_groups(adapted, plain, form=config.lars_form)
    decayed = config.weight_decay if config.decay_1d else 0.0
    groups = [{"params": adapted, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": decayed}]
    return [group for group in groups if group["params"]]


def build_step(
    config: TrainConfig, *, device: str, precision: str, processes: Processes = ALONE, own_norms: bool = True
) -> EagerStep:
    """The step that ``config`` describes, with fresh weights by its seed.

    ``own_norms``: batch norms by ``kernels.norm``, over all processes; without, torch's own, of this process.
    """
    kernels = kernel_choices(config)
    method = build_method(config, kernels, device)
    if own_norms:
        replace_norms(
            as_module(method),
            impl=kernels["norm"],
            ranks=processes.world_size,
            group=own_group(patience=patience_of(config)) if processes.world_size > 1 else "",
            joint=config.run.views == "joint",
            recompute=config.run.activations == "recompute",
        )
    install(as_module(method), config.run.seed)
    recompute_stages(method, config.run.recompute_stages)
    groups, captured = method.param_groups(), config.step.captured
    optimizer = build_optimizer(
        config.optim, groups, batch_size=config.run.batch_size, impl=kernels["lars"], captured=captured
    )
    clipping = clipping_of(config.optim)
    updater = Updater(as_module(method), optimizer, device=device, precision=precision, clipping=clipping)
    step = config.step.build(method, updater, device=device, precision=precision, world_size=processes.world_size)
    if config.run.gradients == "bf16":
        step.average_in_bf16()
    return step


def patience_of(config: TrainConfig) -> float:
    """Seconds that a process waits for others: longer than each for its own images, so that the stuck one is named."""
    return 2 * (config.data.stall_timeout or NEVER)


def fault_budget(config: TrainConfig, processes: Processes) -> FaultBudget:
    """This process's share of the run's: each counts the faults among its own samples."""
    return FaultBudget(-(-config.data.fault_count // processes.world_size), config.data.fault_share)


def assemble(config: TrainConfig) -> Run:
    """Build everything; ``UserError`` for the first thing that cannot be had."""
    processes = launched()
    device = device_of(processes, resolve_device(config.run.device))
    join(processes, device, patience=patience_of(config))
    precision = resolve_precision(config.run.precision, device)
    search_convolutions(device)
    exact_products(precision)
    config.step.check_batch(config.run.batch_size, processes.world_size)
    data = together(lambda: open_data(config), processes)  # one that finds it being added to ends all
    try:
        return _assembled(config, data, processes, device, precision)
    except BaseException:
        data.close()
        raise


def _assembled(config: TrainConfig, data: Datasets, processes: Processes, device: str, precision: str) -> Run:
    kernels = kernel_choices(config)
    plan = training_plan(config, len(data.train))
    config, decided = fitted(config, processes, device=device, precision=precision)
    if line := shortage(config, processes, device=device, precision=precision):
        raise UserError(line)
    slow = SLOW_FP16 if precision == "fp16" and device == "cpu" else ""
    data = replace(data, notes=(*data.notes, *(line for line in (decided, slow) if line)))
    step = build_step(config, device=device, precision=precision, processes=processes)
    if check := getattr(step.method, "check_sizes", None):
        epochs, count = config.run.epochs, len(config.data.training_sizes())
        for place in range(count):
            check(plan.sizes(-(-place * epochs // count)))  # its first epoch
    engine = build_engine(
        config.data.pipeline,
        data.train,
        plan,
        batch_size=config.run.batch_size,
        rank=processes.rank,
        world_size=processes.world_size,
        workers=config.data.workers or processes.cores,
        prefetch=config.data.prefetch,
        device=device,
        budget=fault_budget(config, processes),
        resample=kernels["resample"],
        decoder=config.data.decoder,
        hw_decoder_load=config.data.hw_decoder_load,
        stall=config.data.stall_timeout or NEVER,
        places=takes_places(config.method),
    )
    # The step's autocast would cast its input anyway: casting in the augmentation saves a pass.
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    feed = AugmentedFeed(engine, plan, device=device, dtype=dtype, impl=kernels["augment"])
    probe = build_probe(config, step.method, data, processes)
    return Run(data, plan, engine, feed, step.method, step, device, precision, processes, probe)


def build_probe(config: TrainConfig, method: Method, data: Datasets, processes: Processes) -> OnlineProbe | None:
    """The classifier that will listen to ``method``'s encoder, as a part of it that checkpoints hold; None without one.

    It listens once a trainer lets it: without one, as in a profile, nobody would take what it hears.

    ``UserError`` where there are no classes, or a step whose passes are not the encoder's own.
    """
    if config.run.probe == "none":
        return None
    if len(data.train.classes) < 2:
        raise UserError(f"--probe {config.run.probe}: {data.where} has no classes to learn; leave it out.")
    if config.step.name not in HEARD:
        raise UserError(f"--probe {config.run.probe} hears the passes of --step {' and '.join(HEARD)} alone.")
    encoder = next(iter(method.encoders.values()))
    probe = OnlineProbe(cast(Encoder, encoder).features, len(data.train.classes), processes=processes.world_size)
    probe.to(next(encoder.parameters()).device)
    as_module(method).add_module(NAME, probe)
    return probe
