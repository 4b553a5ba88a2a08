"""What one image of a step computes and moves, layer by layer: counted on tensors that hold nothing.

A method's own ``embed`` and ``target`` are run, so that every view, at its size, goes where the method takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastvicreg.config import TrainConfig, kernel_choices
from fastvicreg.contracts import BuildContext
from fastvicreg.datasets import recipe_of
from fastvicreg.encoders import build_encoder
from fastvicreg.errors import UserError
from fastvicreg.methods.settings import takes_places

BATCH = 2
"""Images of the traced batch: a batch norm takes no statistics of one."""

PASSES: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "eager": {
        "relu": (5, 8), "plain": (3, 5), "last": (8, 11),
        "layer": (7, 13), "residual": (5, 9), "gelu": (2, 3), "bias": (0, 1), "copy": (2, 2),
    },
    "compiled": {
        "relu": (3, 7), "plain": (3, 5), "last": (4, 8),
        "layer": (1, 7), "residual": (5, 3), "gelu": (2, 3), "bias": (0, 1), "copy": (2, 2),
    },
    "fused": {"relu": (3, 5), "plain": (3, 5), "last": (4, 6)},
}  # fmt: skip
"""Times that a tensor is read or written as halves, (forward, backward), by what is done with it.

Batch norms: with a ReLU, alone, and with an addition. eager: norm 3 and 5, ReLU 2 and 3, addition 3, sum of its
gradients 3. compiled: what Inductor makes one of. fused: ``kernels.norm`` with ReLU's mask recomputed: statistics 1,
result 2 (3), sums 2, gradient 3 (4).

Transformers: autocast keeps layer norms and the stream between blocks in fp32, two passes each. eager: layer norm read,
write and cast 2 + 2 + 3, and 3 + 6 + 4 for gradients by input, weight and bias; addition 5 and 9. compiled: a layer
norm is one with the addition before it. Biases: the sum of the gradient; copies: the order of heads and tokens.
"""


@dataclass(frozen=True)
class Product:
    """A convolution, a linear layer or an attention, of one image."""

    operations: float
    """Of one pass."""
    moved: float
    """Bytes of inputs and outputs in a pass, in halves."""
    passes: int
    """3 with the gradients by input and weights, 2 where the input is an image, 1 without gradient."""


@dataclass
class Tower:
    """One pass of an image's view through an encoder, or of all its embeddings through heads."""

    gradient: bool
    """False: of a momentum network."""
    products: list[Product] = field(default_factory=list)
    moves: list[tuple[str, float]] = field(default_factory=list)
    """(kind, as in ``PASSES``; bytes of its tensor in halves) of each norm, addition and activation."""

    def traffic(self, norms: str) -> float:
        """Bytes that ``moves`` are read and written, forward and backward."""
        return sum(
            moved * (PASSES[norms][kind][0] + (PASSES[norms][kind][1] if self.gradient else 0))
            for kind, moved in self.moves
        )


@dataclass(frozen=True)
class Traced:
    """An image's way through a method."""

    views: tuple[Tower, ...]
    """Passes through encoders, with gradient first."""
    heads: tuple[Product, ...]
    """Of expanders, projectors, predictors and prototypes, for all views."""
    parameters: int
    """Trained ones."""
    width: int
    """Of the embeddings."""
    pixels: int
    """Values of all views, three colours each."""

    @property
    def norms(self) -> int:
        """Batch norms that one view passes with gradient: those whose statistics several processes share."""
        first = next(tower for tower in self.views if tower.gradient)
        return sum(kind in ("relu", "plain", "last") for kind, _ in first.moves)


def trace(config: TrainConfig) -> Traced:
    """The layers of ``config``'s method at its views' sizes; ``UserError`` for pairs, and for what no network is."""
    if config.pair.pair:
        raise UserError(f"--pair {config.pair.pair}: the model counts images: leave it out.")
    try:
        with torch.device("meta"):
            context = BuildContext(partial(build_encoder, config.encoder), kernel_choices(config))
            method: Any = config.method.build(context)
    except RuntimeError as error:  # more values than there are numbers for
        raise UserError(f"no network is as large as {config.encoder} ({error}): give lower numbers.") from error
    sides = [view.size or config.data.image_size for view in recipe_of(config.data).views]
    views = [torch.empty(BATCH, 3, side, side, device="meta") for side in sides]
    if takes_places(config.method):
        views.append(torch.empty(BATCH, len(sides), 5, device="meta"))
    counted = _Counting(method)
    with counted.listening():
        method.embed(tuple(views))
        with torch.no_grad():
            method.target(tuple(views))
    linears = [module for module in method.head.modules() if isinstance(module, nn.Linear)]
    trained = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    towers = sorted(counted.towers, key=lambda tower: not tower.gradient)
    pixels = sum(3 * side * side for side in sides)
    return Traced(tuple(towers), tuple(counted.heads.products), trained, linears[-1].out_features, pixels)


class _Counting(TorchFunctionMode):
    """Notes what is called, in the tower of the encoder that runs, or in ``heads`` where none does."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.towers: list[Tower] = []
        self.heads = Tower(gradient=True)
        self._method, self._now, self._inside = method, self.heads, 0

    @contextmanager
    def listening(self) -> Any:
        """While the method runs."""
        names = ("encoder", "encoder_b", "target_encoder")
        encoders = [module for name in names if (module := getattr(self._method, name, None)) is not None]
        handles = [encoder.register_forward_pre_hook(self._enter) for encoder in encoders]
        handles += [encoder.register_forward_hook(self._leave) for encoder in encoders]
        for encoder in encoders:
            last = _last_norms(encoder)
            for name, module in encoder.named_modules():
                if isinstance(module, nn.BatchNorm2d):
                    kind = "plain" if "downsample" in name else "last" if module in last else "relu"
                    handles.append(module.register_forward_hook(partial(self._normalised, kind)))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, _module: nn.Module, _given: Any) -> None:
        if not self._inside:
            self._now = Tower(torch.is_grad_enabled())
            self.towers.append(self._now)
        self._inside += 1

    def _leave(self, _module: nn.Module, _given: Any, _made: Any) -> None:
        self._inside -= 1
        if not self._inside:
            kinds = {kind for kind, _ in self._now.moves}
            if kinds & {"relu", "plain", "last"}:  # whose counts hold the additions and activations beside them
                self._now.moves = [(kind, moved) for kind, moved in self._now.moves if kind not in ("residual", "gelu")]
            self._now = self.heads

    def _normalised(self, kind: str, _module: nn.Module, _given: Any, made: Tensor) -> None:
        self._now.moves.append((kind, 2 * _of_one(made)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (F.conv2d, F.linear):
            given, weight = args[0], args[1]
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            self._product(2 * _of_one(made) * weight[0].numel(), given, made, image=_is_image(given))
            if bias is not None and func is F.linear:
                self._now.moves.append(("bias", 2 * _of_one(made)))
        elif func is F.scaled_dot_product_attention:
            query, key = args[:2]
            scores = _of_one(query) * key.shape[-2]
            # Flash attention: scores stay on the chip; queries, keys, values and results move.
            self._product(4 * scores, query, made, moved=8 * _of_one(query), image=False)
        elif func is F.layer_norm:
            self._now.moves.append(("layer", 2 * _of_one(made)))
        elif func is F.gelu:
            self._now.moves.append(("gelu", 2 * _of_one(made)))
        elif func in ADDITIONS and isinstance(args[1], Tensor) and made.ndim >= 3:
            self._now.moves.append(("residual", 2 * _of_one(made)))
        elif func is Tensor.reshape and not args[0].is_contiguous():
            self._now.moves.append(("copy", 2 * _of_one(made)))
        return made

    def _product(self, operations: float, given: Tensor, made: Tensor, *, image: bool, moved: float = 0.0) -> None:
        passes = 1 if not torch.is_grad_enabled() else 2 if image else 3
        moved = moved or 2 * (_of_one(given) + _of_one(made))
        self._now.products.append(Product(operations, moved, passes))


ADDITIONS = (Tensor.add, Tensor.__add__, Tensor.add_, Tensor.__iadd__, torch.add)


def _of_one(tensor: Tensor) -> float:
    """Values of one image."""
    return tensor.numel() / (1 if tensor.shape[0] % BATCH else BATCH)  # learned positions have a batch of one


def _is_image(tensor: Tensor) -> bool:
    """An image has no gradient."""
    return tensor.ndim == 4 and tensor.shape[1] == 3


def _last_norms(encoder: nn.Module) -> set[nn.Module]:
    """Each residual block's last batch norm, which the shortcut is added to."""
    found = set()
    for module in encoder.modules():
        own = [child for child in module.children() if isinstance(child, nn.BatchNorm2d)]
        if len(own) > 1:
            found.add(own[-1])
    return found
