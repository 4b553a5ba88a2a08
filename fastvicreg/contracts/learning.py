"""The seams of learning: encoder, method, step, and what they tell of themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from fastvicreg.contracts.data import Batch


class Terms(NamedTuple):
    """A loss: ``total`` carries the gradient, ``parts`` are detached, unweighted scalars named by the method."""

    total: Tensor
    parts: dict[str, Tensor]


class ParamGroup(NamedTuple):
    """Parameters, whether weight decay and LARS's trust ratio apply to them, and how their learning rate differs."""

    params: list[nn.Parameter]
    adapted: bool
    lr_scale: float = 1.0
    """Factor of the run's learning rate."""
    constant_lr: bool = False
    """Whether the learning rate stays at its peak, without warm-up and cosine."""


def by_dimension(module: nn.Module, apart: Collection[nn.Module | nn.Parameter] = ()) -> list[ParamGroup]:
    """The usual rule: parameters of one dimension (biases, norms) are neither decayed nor adapted.

    Nor are those of ``apart``, such as tokens and embeddings of words: a group of their own, the last.
    """
    given = [[one] if isinstance(one, nn.Parameter) else list(one.parameters()) for one in apart]
    own = [param for each in given for param in each if param.requires_grad]
    kept = {id(param) for param in own}
    params = [param for param in module.parameters() if param.requires_grad and id(param) not in kept]
    wide, narrow = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
    groups = [ParamGroup(wide, True), ParamGroup(narrow, False)]
    return [*groups, ParamGroup(own, False)] if apart else groups


class Encoder(Protocol):
    """An ``nn.Module`` from images (B, 3, H, W) to features (B, F); ``features`` is F."""

    features: int

    def __call__(self, x_BCHW: Tensor) -> Tensor: ...
    def param_groups(self) -> list[ParamGroup]:
        """All trained parameters: a network's tokens and norms are its own to name."""
        ...


class MapEncoder(Encoder, Protocol):
    """An encoder that also gives what it has of each part of the image, where ``tokens`` asks for it.

    ``(features_BF, map_BNC)``: N is rows times columns, row by row from the top left, C is ``map_features``; 0 says
    that there is no such map.
    """

    map_features: int


Schedule = Callable[[int], float]
"""The value of a schedule at a step, counted from 0."""


class Horizon(NamedTuple):
    """The extent of a run, which schedules are stretched over."""

    steps: int
    steps_per_epoch: int
    batch_size: int  # total


@dataclass(frozen=True)
class Column:
    """One of a method's parts as display, log and plots show it."""

    name: str
    """Key in ``Terms.parts``."""
    short: str
    """Heading in a line of text."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """Reference values: what they are called to the parts that hold them."""
    scale: Literal["linear", "log"] = "linear"


class Spread(NamedTuple):
    """How a method's embeddings spread over a batch: collapse is a part that falls far below its healthy value."""

    part: str
    """Key in ``Terms.parts``: a standard deviation."""
    healthy: float
    cause: str
    """What a collapse most likely comes from, and the flag that helps; "": the learning rate."""
    rank_cause: str = ""
    """The same where embeddings spread along one line."""
    raw: bool = False
    """Whether the standard deviation is of the embeddings as they are; else of unit vectors."""


SIDE_ROWS = 256
"""Embeddings of a side that are looked at: the rank of more would not tell a collapse any better."""


class Method(Protocol):
    """A self-supervised method: an ``nn.Module`` that owns its encoders, heads, targets and queues.

    The step calls ``embed``, ``target`` and ``loss`` in this order, under autocast, and ``after_update`` once the
    optimizer had its turn. What ``embed`` and ``target`` return is the method's own: any nesting of tensors. A method
    whose settings say ``takes_places`` is given ``Batch.places_BV5`` as the last of the views. One that cannot take
    views of any size may have a ``check_sizes``, which is given the sides of a run's views before its first step.
    """

    columns: tuple[Column, ...]

    @property
    def spread(self) -> Spread: ...

    @property
    def sides(self) -> Mapping[str, Tensor]:
        """The last loss's first embeddings of each side, (R, D) with R of ``SIDE_ROWS`` at most, detached copies.

        Sides are the views' projections, a and b, each of its own branch where there are two; or online and target
        where targets come from a momentum network.
        """
        ...

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """For evaluation and export, the principal one first, by attribute name, which begins its tensors' names."""
        ...

    @property
    def head(self) -> nn.Module:
        """From the principal encoder's features (B, F) to the embeddings (B, D) that the loss spreads: the expander or
        projector, never a predictor. A method with an "encoder_b" among its encoders has its ``head_b`` too."""
        ...

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """What the method varies over the run, beside the learning rate "lr"; logged and shown by these names."""
        ...

    def embed(self, views: tuple[Tensor, ...]) -> Any:
        """Embeddings with gradient; ``UserError`` for a number of views that it does not take."""
        ...

    def target(self, views: tuple[Tensor, ...]) -> Any:
        """Embeddings without gradient, of a target network; None where there is none."""
        ...

    def loss(self, embeddings: Any, targets: Any) -> Terms: ...
    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """Move targets and queues; nothing moves where ``finite`` is not set.

        Both the schedules' values and ``finite`` may be scalars on the device, which nothing may wait for.
        """
        ...

    def param_groups(self) -> list[ParamGroup]: ...


@dataclass(frozen=True)
class BuildContext:
    """What a method is built from beside its own settings."""

    build_encoder: Callable[..., Encoder]
    """A new encoder at every call, as the run's settings describe it; given words, another (``encoders.varied``)."""
    kernels: Mapping[str, str] = field(default_factory=dict)
    """Implementations by part, as --kernel names them; parts that are not named are "auto"."""


class Step(Protocol):
    """One update: forward, backward, finite gate, optimizer. Never synchronises with the device."""

    def __call__(self, batch: Batch, scalars: Mapping[str, float]) -> Terms:
        """``scalars`` holds this step's learning rate as "lr", and the method's schedules.

        What is returned holds until the next call.
        """
        ...

    def close(self) -> None:
        """Give back what it has recorded on the device; it is not called again."""
        ...
