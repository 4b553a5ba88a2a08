"""A network of timm's behind the encoders' contract.

Shape suffixes: B batch, F features.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastvicreg.contracts import ParamGroup, by_dimension
from fastvicreg.errors import UserError

TOO_SMALL = "Kernel size can't be greater than actual input size"
"""What torch's convolutions say."""


class TimmEncoder(nn.Module):
    """Images (B, 3, H, W), normalised, to features (B, F): what timm's classifier would be given.

    timm's parameter names lie below ``net.``; a batch norm with an activation of its own is a sequence of the two.
    Nothing is dropped in training, though timm's defaults for a few networks do: their draws would be those of a global
    generator, which neither a resumed run nor a recomputed view has as it was.
    """

    def __init__(self, name: str, net: nn.Module, options: dict[str, Any]) -> None:
        """``options``: what ``timm.create_model`` was given beside the name."""
        super().__init__()
        self.name, self.net, self.options = name, net, options
        # Some networks have a layer between the pooling and the classifier.
        self.features = int(getattr(net, "head_hidden_size", None) or net.num_features)  # type: ignore[arg-type]
        parts = hasattr(net, "forward_features") and hasattr(net, "forward_head")
        self.map_features = int(net.num_features) if parts else 0  # type: ignore[arg-type]
        self._parted = part_norms(net)
        keep_all(net)

    def forward(self, x_BCHW: Tensor, tokens: bool = False) -> Any:
        """With ``tokens`` (features, map), see ``contracts.MapEncoder``: the map is timm's ``forward_features``.

        ``UserError`` where the network does not take the images' size, or has no map of positions.
        """
        run = self._with_map if tokens else self.net
        if torch.compiler.is_compiling():
            return run(x_BCHW)
        try:
            return run(x_BCHW)
        except (AssertionError, RuntimeError) as error:
            # timm's own check, or a map that has shrunk to less than the next convolution's kernel.
            if isinstance(error, RuntimeError) and TOO_SMALL not in str(error):
                raise
            height, width = x_BCHW.shape[2:]
            raise UserError(
                f"timm's {self.name} takes no images of {width} x {height} px ({error}): give the --image-size that it "
                "is for, or --made-for with the views' side."
            ) from error

    def _with_map(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        net: Any = self.net
        found = net.forward_features(x_BCHW)
        return net.forward_head(found), self._as_map(found)

    def _as_map(self, found: Any) -> Tensor:
        """(B, N, C) of timm's (B, C, H, W), (B, H, W, C), or tokens of which the first may be no position's."""
        shape = tuple(getattr(found, "shape", ()))
        if len(shape) == 3 and shape[2] == self.map_features:
            return found[:, getattr(self.net, "num_prefix_tokens", 0) :]
        if len(shape) == 4 and shape[1] == self.map_features:
            return found.flatten(2).mT
        if len(shape) == 4 and shape[3] == self.map_features:
            return found.flatten(1, 2)
        raise UserError(
            f"timm's {self.name} gives no map of positions before its pooling ({shape or type(found).__name__}): give "
            "another --model."
        )

    def timm_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers under timm's own names."""
        named = {}
        for name, value in self.net.state_dict().items():
            for norm in self._parted:
                if name.startswith(f"{norm}."):
                    place, _, own = name.removeprefix(f"{norm}.").partition(".")
                    name = f"{norm}.{own}" if place == "0" else f"{norm}.act.{own}"
                    break
            named[name] = value
        return named

    def param_groups(self) -> list[ParamGroup]:
        """Biases, norms and what timm names in ``no_weight_decay`` are neither decayed nor adapted."""
        names = set(getattr(self.net, "no_weight_decay", set)())
        named = [param for name, param in self.net.named_parameters() if name in names and param.requires_grad]
        own = {id(param) for param in named}
        groups = [
            group._replace(params=[param for param in group.params if id(param) not in own])
            for group in by_dimension(self)
        ]
        return [*groups, ParamGroup(named, adapted=False)] if named else groups


def created(name: str, made_for: int = 0) -> TimmEncoder:
    """The encoder of timm's network ``name``, for images of any size where it can be.

    ``UserError`` where timm does not import, has no such network, or cannot build it so.
    """
    try:
        timm: Any = importlib.import_module("timm")
    except Exception as error:  # torchvision beside a torch that it was not made for fails with errors of many kinds
        raise UserError(
            f"--arch timm needs timm, which does not import ({_first_line(error)}): pip install timm, with the "
            "torchvision that goes with this torch."
        ) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"--model {name}: timm {timm.__version__} has no such network; "
            + (f"near it are {', '.join(near)}." if near else "timm.list_models() names all that it has.")
        )
    attempts: list[dict[str, Any]] = [{"img_size": made_for}] if made_for else [{"dynamic_img_size": True}, {}]
    refused = ""
    for options in attempts:
        try:
            return TimmEncoder(name, timm.create_model(name, pretrained=False, num_classes=0, **options), options)
        except TypeError as error:  # an option that this family has not
            refused = str(error)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(f"timm cannot build {name} ({_first_line(error)}).") from error
    if made_for:
        raise UserError(f"--made-for {made_for}: timm's {name} has no size of its own: leave it out.")
    raise UserError(f"timm cannot build {name} without a classifier ({refused}).")


def part_norms(net: nn.Module) -> list[str]:
    """Make a sequence of norm, dropout and activation of each batch norm that carries them (``BatchNormAct2d``).

    Norms are replaced where statistics are shared between processes or kernels are fused, and with a norm of that kind
    its activation would be gone. Returns these norms' names; ``UserError`` for a norm that cannot be taken apart.
    """
    parted = []
    for path, parent in list(net.named_modules()):
        if getattr(parent, "inplace", False):
            parent.inplace = False  # type: ignore[assignment]  # it would overwrite what a fused norm's backward reads
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and hasattr(child, "act"):
                setattr(parent, name, _in_parts(child))
                parted.append(f"{path}.{name}" if path else name)
            elif isinstance(child, _BatchNorm) and type(child).__module__.split(".")[0] == "timm":
                raise UserError(f"timm's {type(child).__name__} is a batch norm of a kind that is not trained here.")
    return parted


def keep_all(net: nn.Module) -> None:
    """Set to 0 each rate of dropout and of stochastic depth: of layers, and of what drops by a function."""
    for module in net.modules():
        rates = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else ["drop_rate", "drop_prob"]
        for rate in rates:
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


def _in_parts(joined: Any) -> nn.Sequential:
    norm = nn.BatchNorm2d(joined.num_features, joined.eps, joined.momentum, joined.affine, joined.track_running_stats)
    norm._parameters, norm._buffers = joined._parameters, joined._buffers
    after = [layer for layer in (getattr(joined, "drop", None), joined.act) if layer is not None]
    return nn.Sequential(norm, *(layer for layer in after if not isinstance(layer, nn.Identity)))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
