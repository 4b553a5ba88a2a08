"""VICReg's step of lightly and of solo-learn: their projector, loss and LARS, as their own ImageNet settings put them.

Around them the same ResNet in NCHW with torch's batch norms, which both take from torchvision, and the same views: what
differs is theirs. One view after the other goes through the network, as both have it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fastvicreg.errors import UserError
from fastvicreg.train.device import AUTOCAST, exact_products

LR = 0.0
"""As of the other rows: an update that changes nothing takes as long."""


@dataclass(frozen=True)
class Parts:
    """What a peer's step is made of."""

    projector: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Any
    """``torch.optim.Optimizer``'s methods."""


class PeerStep:
    """Forward of both views, loss, backward and update; called without arguments."""

    def __init__(self, encoder: nn.Module, parts: Parts, views: Sequence[Tensor], precision: str) -> None:
        """``views``: two of (N, 3, H, W), where the networks are."""
        self.encoder, self.parts, self.views = encoder, parts, views
        self._precision, self._dtype = precision, AUTOCAST[precision]
        self._kind = views[0].device.type
        self._scaler = torch.amp.GradScaler(self._kind, enabled=self._dtype is torch.float16)

    @property
    def projector(self) -> nn.Module:
        """The peer's."""
        return self.parts.projector

    def loss(self) -> Tensor:
        """Of the views, by the weights as they are."""
        with torch.autocast(self._kind, self._dtype, enabled=self._dtype is not None):
            z_a, z_b = (self.projector(self.encoder(view)) for view in self.views)
            return self.parts.loss(z_a, z_b)

    def __call__(self) -> None:
        exact_products(self._precision)  # which the row before it may have set otherwise
        optimizer = self.parts.optimizer
        optimizer.zero_grad()
        self._scaler.scale(self.loss()).backward()
        self._scaler.step(optimizer)
        self._scaler.update()


def lightly_parts(encoder: nn.Module, features: int, widths: Sequence[int]) -> Parts:
    """As lightly's ImageNet benchmark has VICReg: its head, loss and LARS. ``UserError`` where it is not installed."""
    loss, heads, lars = (
        imported("lightly", name) for name in ("lightly.loss", "lightly.models.modules.heads", "lightly.utils.lars")
    )
    hidden, output = two_widths("lightly", widths)
    projector = heads.VICRegProjectionHead(features, hidden, output, num_layers=len(widths))
    networks = nn.ModuleList([encoder, projector])
    decayed = [param for param in networks.parameters() if param.ndim > 1]
    others = [param for param in networks.parameters() if param.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return Parts(projector, loss.VICRegLoss(), lars.LARS(groups, lr=LR, momentum=0.9, weight_decay=1e-6))


def solo_parts(encoder: nn.Module, features: int, widths: Sequence[int]) -> Parts:
    """As solo-learn's VICReg on ImageNet: its layers, loss and clipped LARS. ``UserError`` where it is not installed.

    Loss and LARS are read as files: importing the package takes Lightning and, as it is on PyPI, torch 1.9.
    """
    loss, lars = _file("solo-learn", "solo", "losses/vicreg.py"), _file("solo-learn", "solo", "utils/lars.py")
    hidden, output = two_widths("solo-learn", widths)
    layers: list[nn.Module] = []
    for width in (features, *[hidden] * (len(widths) - 2)):
        layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    projector = nn.Sequential(*layers, nn.Linear(hidden, output))
    weights = nn.ModuleList([encoder, projector]).parameters()
    sgd = torch.optim.SGD(weights, lr=LR, momentum=0.9, weight_decay=1e-6)
    # Later versions have LARS as an optimizer; the one on PyPI wraps SGD.
    options = {"eta": 0.02, "exclude_bias_n_norm": True}
    if hasattr(lars, "LARSWrapper"):
        return Parts(projector, loss.vicreg_loss_func, lars.LARSWrapper(sgd, clip=True, **options))
    made = lars.LARS(sgd.param_groups, lr=LR, momentum=0.9, weight_decay=1e-6, clip_lr=True, **options)
    return Parts(projector, loss.vicreg_loss_func, made)


PEERS: dict[str, Callable[[nn.Module, int, Sequence[int]], Parts]] = {"lightly": lightly_parts, "solo": solo_parts}
"""What ``bench step --against`` takes beside the official step."""


def peer_step(
    name: str, encoder: nn.Module, features: int, widths: Sequence[int], views: Sequence[Tensor], precision: str
) -> PeerStep:
    """The step of the peer ``name``, around ``encoder``'s ``features`` and a projector of ``widths``.

    ``UserError`` where it is not installed or its projector cannot have these widths.
    """
    torch.manual_seed(0)
    parts = PEERS[name](encoder, features, widths)
    parts.projector.to(views[0].device)
    return PeerStep(encoder, parts, views, precision)


def installed(name: str) -> str:
    """Such as "lightly 1.6.0", for a row's note."""
    package = {"solo": "solo-learn"}.get(name, name)
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def imported(package: str, module: str) -> ModuleType:
    """``module`` of ``package``; ``UserError`` where it does not import."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{package} does not import here ({error}): pip install {package}.") from error


def _file(package: str, top: str, inside: str) -> ModuleType:
    """One file of an installed package, without the package."""
    spec = importlib.util.find_spec(top)
    places = [Path(place) / inside for place in (spec.submodule_search_locations or ())] if spec else []
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"{package} is not installed here: pip install --no-deps {package}.")
    name = f"_{top}_{found.stem}"
    made = importlib.util.spec_from_file_location(name, found)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    try:
        made.loader.exec_module(module)
    except Exception as error:  # what a package of any age does with this torch
        raise UserError(f"{package}'s {inside} does not run here: {error}") from error
    return module


def two_widths(package: str, widths: Sequence[int]) -> tuple[int, int]:
    """(hidden, output); ``UserError`` where hidden layers differ, which these projectors do not have."""
    if len(widths) < 2 or len(set(widths[:-1])) > 1:
        raise UserError(f"{package}'s projector has hidden layers of one width, not {' '.join(map(str, widths))}.")
    return widths[0], widths[-1]
