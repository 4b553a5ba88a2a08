"""From a config to the parts of a run: data, model, optimizer, step; the only place that knows all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fastvicreg.config import OptimConfig, TrainConfig, kernel_choices
from fastvicreg.contracts import Engine, Plan
from fastvicreg.datasets import Datasets, open_data
from fastvicreg.distributed import Processes, device_of, join, launched
from fastvicreg.errors import UserError
from fastvicreg.model import ResNet, resnet
from fastvicreg.norm import synchronise
from fastvicreg.objectives import build_objective
from fastvicreg.optim import LARS
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.feed import Feed
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.step import TrainStep
from fastvicreg.updater import Updater


@dataclass(frozen=True)
class Run:
    """A run's parts, ready for the trainer."""

    data: Datasets
    plan: Plan
    engine: Engine
    feed: Feed
    encoder: ResNet
    module: nn.ModuleDict  # encoder and objective: all that a checkpoint holds
    step: TrainStep
    device: str
    precision: str
    processes: Processes


def resolve_device(asked: str) -> str:
    """ "auto" as cuda where there is one; ``UserError`` for a device that is not here."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"--device {asked!r} is no device: give auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {asked} is not supported: give auto, cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {asked}: torch {torch.__version__} finds no CUDA device here; give --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {asked}: there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return asked


def build_optimizer(config: OptimConfig, module: nn.Module, *, impl: str = "auto") -> torch.optim.Optimizer:
    """The optimizer that ``config`` names; none decays a parameter of one dimension."""
    if config.optimizer == "lars":
        return LARS(module.parameters(), lr=0.0, weight_decay=config.weight_decay, eta=config.eta, impl=impl)
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    assert config.optimizer == "adamw", config.optimizer
    return torch.optim.AdamW(groups, lr=0.0)


def fault_budget(config: TrainConfig, processes: Processes) -> FaultBudget:
    """This process's share of the run's: each counts the faults among its own samples."""
    return FaultBudget(-(-config.data.fault_count // processes.world_size), config.data.fault_share)


def assemble(config: TrainConfig) -> Run:
    """Build everything; ``UserError`` for the first thing that cannot be had."""
    processes = launched()
    device = device_of(processes, resolve_device(config.run.device))
    join(processes, device)
    precision = config.run.precision
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "off"
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True  # as main_vicreg.py: shapes stay, a search for the best pays
    kernels = kernel_choices(config)
    data = open_data(config)
    plan = train_plan(
        len(data.train),
        seed=config.run.seed,
        recipe=named_recipe(config.data.recipe),
        image_size=config.data.image_size,
        shuffle=config.data.shuffle,
    )
    torch.manual_seed(config.run.seed)
    encoder = resnet(config.model.arch, width=config.model.width, stem=config.model.stem)
    objective = build_objective(config.objective, encoder.features, config.model.expander, impl=kernels["loss"])
    module = nn.ModuleDict({"encoder": encoder, "objective": objective}).to(device)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if processes.world_size > 1:
        synchronise(module, device)
    optimizer = build_optimizer(config.optim, module, impl=kernels["lars"])
    updater = Updater(module, optimizer, device=device, precision=precision)
    step = TrainStep(encoder, objective, updater, device=device, precision=precision, world_size=processes.world_size)
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
    )
    # The step's autocast would cast its input anyway: casting in the augmentation saves a pass.
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    feed = Feed(engine, plan, device=device, dtype=dtype, impl=kernels["augment"])
    return Run(data, plan, engine, feed, encoder, module, step, device, precision, processes)
