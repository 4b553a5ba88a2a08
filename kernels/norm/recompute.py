"""Outputs of norms computed again in backward, so that a convolution between two norms keeps one tensor and not two.

A convolution keeps its input, a norm's output; the next norm keeps its own input, the convolution's output. Of the two
the first follows from the norm's input by one pass over it. Inside ``recomputing`` what autograd would save of it is
the recipe, and the tensor is freed. With an addition the recipe reaches back to the first block of a stage: backward,
which starts at the last, makes a stage's outputs in one go and frees them one by one.

A compiler's own partitioner does the like with what it fuses; this is for PyTorch as it runs operation by operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvicreg.kernels.norm.options import Options

ATTRIBUTE = "fastvicreg_recipe"
"""Of a storage: it lives as long as the memory, whichever tensors look at it."""


@dataclass
class Recipe:
    """All that a norm's output is made from."""

    passes: Any
    x: Tensor
    residual: Tensor | Recipe | None
    weight_C: Tensor
    bias_C: Tensor
    found: Any
    options: Options
    layout: tuple[Any, ...]
    """Of the output: shape, strides, offset, version."""
    value: Tensor | None = None

    def output(self) -> Tensor:
        """Made once; freed with the recipe, which autograd drops after the last use."""
        pending: list[Recipe] = [self]
        while pending[-1].value is None and isinstance(pending[-1].residual, Recipe):
            pending.append(pending[-1].residual)
        for recipe in reversed(pending):
            if recipe.value is None:
                added = recipe.residual.value if isinstance(recipe.residual, Recipe) else recipe.residual
                recipe.value = recipe.passes.normalised(
                    recipe.x, added, recipe.weight_C, recipe.bias_C, recipe.found, recipe.options
                )
                recipe.residual = None
        assert self.value is not None
        return self.value


def remember(
    passes: Any,
    x: Tensor,
    residual: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor,
    found: Any,
    options: Options,
    y: Tensor,
) -> None:
    """Note beside the memory of ``y`` how it was made."""
    added = None if residual is None else pack(residual)
    recipe = Recipe(passes, x, added, weight_C.detach(), bias_C.detach(), found, options, _layout(y))
    setattr(y.untyped_storage(), ATTRIBUTE, recipe)


def forget(y: Tensor) -> Tensor:
    """``y``, without what ``remember`` noted: it is kept itself, and what it was made from need not be."""
    vars(y.untyped_storage()).pop(ATTRIBUTE, None)
    return y


def pack(tensor: Tensor) -> Tensor | Recipe:
    """The recipe of a norm's unchanged output; any other tensor itself."""
    recipe: Recipe | None = getattr(tensor.untyped_storage(), ATTRIBUTE, None)
    return tensor if recipe is None or recipe.layout != _layout(tensor) else recipe


@torch.no_grad()
def unpack(packed: Tensor | Recipe) -> Tensor:
    """The tensor."""
    return packed.output() if isinstance(packed, Recipe) else packed


def recomputing() -> torch.autograd.graph.saved_tensors_hooks:
    """Inside, autograd saves recipes of what norms with ``Options.recompute`` give: one pass more in backward."""
    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor._version
