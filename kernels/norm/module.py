"""The norm as a module under torch's names, which takes the addition and the ReLU that follow it into its own step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastvicreg.kernels.loss.ranks import Ranks, group_name
from fastvicreg.kernels.norm.functional import batch_norm_act
from fastvicreg.kernels.norm.options import Options


@dataclass
class JointViews:
    """How many views lie in the batch that runs; shared by all norms of a method, set around a forward pass."""

    count: int = 1


@dataclass
class SecondPass:
    """Whether what runs is computed again for backward: the first pass has moved the running statistics."""

    runs: bool = False


class BatchNorm(_BatchNorm):
    """``nn.BatchNorm1d`` or ``nn.BatchNorm2d`` by ``kernels.norm``: the same parameters, buffers and values.

    In training the statistics are those of each view in the batch, over all of ``group``'s processes. In evaluation it
    is torch's own.
    """

    impl: str = "auto"
    relu: bool = False
    """Whether a ReLU follows where the call does not say: in an ``nn.Sequential``."""
    ranks: int = 1
    group: str = ""
    """Name of the group of the ``ranks`` processes whose rows make the batch."""
    joint_views: JointViews | None = None
    recompute: bool = False
    """Whether ``recompute.recomputing`` may drop the output and compute it again in backward."""
    second_pass: SecondPass | None = None
    _run: tuple[int, str] = (1, "")

    @classmethod
    def of(cls, other: _BatchNorm, **settings: Any) -> BatchNorm:
        """One that shares ``other``'s parameters and buffers."""
        assert other.momentum is not None, "a cumulative average is not supported"
        own = cls(0, other.eps, other.momentum, affine=False, track_running_stats=False)
        own.num_features, own.affine = other.num_features, other.affine
        own.track_running_stats = other.track_running_stats
        own._parameters, own._buffers = other._parameters, other._buffers
        own.training = other.training
        for name, value in settings.items():
            setattr(own, name, value)
        own._run = own.ranks, own.group
        return own

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """Processes whose rows make the batch; None: all of the run's."""
        return Ranks.named(self.group).group

    @process_group.setter
    def process_group(self, group: dist.ProcessGroup | None) -> None:
        self.ranks, self.group = self._run if group is None else (dist.get_world_size(group), group_name(group))

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2, input.shape

    def forward(self, input: Tensor, residual: Tensor | None = None, *, relu: bool | None = None) -> Tensor:
        """``input`` (B, C, ...), normalised; ``residual`` of its shape is added, then comes ReLU where asked for."""
        relu = self.relu if relu is None else relu
        if not self.training:
            y = super().forward(input)
            y = y if residual is None else y + residual
            return F.relu(y, inplace=True) if relu else y
        views = self.joint_views.count if self.joint_views else 1
        assert self.momentum is not None
        running = None
        if self.track_running_stats and not (self.second_pass and self.second_pass.runs):
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            running = self.running_mean, self.running_var
            with torch.no_grad():
                self.num_batches_tracked.add_(views)
        options = Options(relu, views, self.momentum, self.eps, self.ranks, self.group, self.recompute)
        # A norm without scale or shift has them as constants: the kernels know one form.
        wide = torch.promote_types(input.dtype, torch.float32)
        weight_C = input.new_ones(input.shape[1], dtype=wide) if self.weight is None else self.weight
        bias_C = input.new_zeros(input.shape[1], dtype=wide) if self.bias is None else self.bias
        return batch_norm_act(
            input, weight_C, bias_C, residual=residual, running=running, options=options, impl=self.impl
        )


def activated(layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """``relu(layer(x) + residual)``, in one step where the norm can, else as torch does it."""
    if isinstance(layer, BatchNorm):
        return layer(x, residual, relu=True)
    y = layer(x)
    return F.relu(y if residual is None else y + residual, inplace=True)
