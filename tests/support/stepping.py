"""Methods, batches and steps that are traced in no time, and what is compared of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from methods import METHOD_CONFIGS, batch_for, batch_of
from recorded import TracedGraphs
from torch import Tensor, nn

from fastvicreg.contracts import Batch, BuildContext, Horizon
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.byol.method import BYOL
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg
from fastvicreg.optim import LARS
from fastvicreg.train.assemble import as_module
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.steps.graphed.step import EAGER_STEPS, GraphedStep
from fastvicreg.train.updater import Updater

TOLERANCE = 1e-6
"""In fp64; a rate on the device is an fp32 scalar, and some of the terms are."""
RATES = [{"lr": 0.4, "momentum": 0.9}, {"lr": 0.3, "momentum": 0.95}, {"lr": 0.2, "momentum": 0.99}]


class Small(nn.Module):
    """An encoder that is traced in no time; without a batch norm a sample's features are its own function."""

    features = map_features = 16

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 5, stride=3)
        self.bn1 = nn.BatchNorm2d(16) if norm else nn.Identity()

    def forward(self, x: Tensor, tokens: bool = False) -> Any:
        x = self.bn1(self.conv(x)).relu()
        return (x.mean((2, 3)), x.flatten(2).mT) if tokens else x.mean((2, 3))

    def param_groups(self) -> list[Any]:
        return []


def vicreg() -> VICReg:
    torch.manual_seed(0)
    return VICReg(Small(), VICRegConfig(expander=(32, 24)), impl="reference")  # pyright: ignore[reportArgumentType]


def byol() -> BYOL:
    torch.manual_seed(0)
    return BYOL(Small(), BYOLConfig(projector=(32, 16), predictor_hidden=(32,)))  # pyright: ignore[reportArgumentType]


METHODS: dict[str, Callable[[], VICReg | BYOL]] = {"vicreg": vicreg, "byol": byol}


def any_method(name: str) -> Any:
    torch.manual_seed(0)
    return as_module(METHOD_CONFIGS[name].build(BuildContext(Small))).double()  # pyright: ignore[reportArgumentType]


def totals(method: Any, step: EagerStep, count: int = EAGER_STEPS + 3) -> list[float]:
    """Of steps with the method's own schedules and, where it draws, the same draws."""
    schedules, found = method.schedules(Horizon(100, 10, 8)), []
    for number, batch in enumerate(batches(count, method=method)):
        torch.manual_seed(number)
        rates = {"lr": 0.1} | {name: schedule(number) for name, schedule in schedules.items()}
        found.append(float(step(double(batch), rates).total))
    return found


def lars(method: nn.Module, *, capturable: bool = False) -> LARS:
    rate = torch.zeros(()) if capturable else 0.0
    return LARS(method.parameters(), lr=rate, weight_decay=1e-4, eta=0.02, impl="foreach", capturable=capturable)


def batches(count: int, samples: int = 8, method: Any = None) -> list[Batch]:
    """With places where ``method`` takes them."""
    base = batch_of(samples) if method is None else batch_for(method, samples)
    return [replace(base, views=tuple(view + 0.1 * number for view in base.views)) for number in range(count)]


def run(step: EagerStep, count: int = 6, dtype: torch.dtype = torch.float32) -> list[dict[str, float]]:
    """The terms of each step, read at once: a graph's are overwritten by the next."""
    rows = []
    for number, batch in enumerate(batches(count)):
        views = tuple(view.to(dtype) for view in batch.views)
        terms = step(replace(batch, views=views), RATES[number % len(RATES)])
        rows.append({"total": float(terms.total), **{name: float(part) for name, part in terms.parts.items()}})
    return rows


def held(method: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*method.parameters(), *method.buffers(), *moments]


def graphed(method: VICReg | BYOL) -> GraphedStep:
    optimizer = lars(method, capturable=True)
    return GraphedStep(method, Updater(method, optimizer), graphs=TracedGraphs(lambda: held(method, optimizer)))


def assert_alike(one: nn.Module, other: nn.Module, *, rtol: float, atol: float) -> None:
    for (name, value), wanted in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def plain() -> VICReg:
    torch.manual_seed(0)
    method = VICReg(Small(norm=False), VICRegConfig(expander=(16,)), impl="gram")
    return method.double()


def double(batch: Batch) -> Batch:
    return replace(batch, views=tuple(view.double() for view in batch.views))
