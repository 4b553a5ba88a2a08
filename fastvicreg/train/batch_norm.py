"""Batch normalisation over the whole batch where several processes share it, as the official code synchronises it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import record_function

from fastvicreg import stages


class HostSyncBatchNorm(_BatchNorm):
    """``nn.SyncBatchNorm`` for CPU tensors, which that one refuses: same parameters, buffers and values."""

    process_group: dist.ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2, input.shape

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) normalised by the mean and the biased variance over all processes' samples, while training."""
        if not self.training or dist.get_world_size(self.process_group) == 1:
            return super().forward(input)
        axes = (0, *range(2, input.ndim))
        shape = (1, -1, *(1,) * (input.ndim - 2))
        # As nn.BatchNorm, which keeps the statistics of half types in fp32.
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        local = wide.new_tensor([input.numel() / input.shape[1]])
        with record_function(stages.COMM):
            sums = _Sum.apply(torch.cat([local, wide.sum(axes)]), self.process_group)
        count, mean_C = sums[0].detach(), sums[1:] / sums[0].detach()
        centred = wide - mean_C.view(shape)
        with record_function(stages.COMM):
            variance_C = _Sum.apply(centred.square().sum(axes), self.process_group) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale_C = torch.rsqrt(variance_C + self.eps)
        if not self.affine:
            return (centred * scale_C.view(shape)).to(input.dtype)
        return (centred * (self.weight * scale_C).view(shape) + self.bias.view(shape)).to(input.dtype)


class _Sum(torch.autograd.Function):
    """Over the processes, of values and of gradients; torch.distributed.nn has one that is deprecated."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone()
        with record_function(stages.COMM):
            dist.all_reduce(total, group=ctx.group)
        return total, None


def synchronise(module: nn.Module, device: str) -> nn.Module:
    """``module`` with its batch norms over all processes; parameters and their names stay."""
    if device.startswith("cuda"):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            own = HostSyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
            assert child.running_mean is not None
            own.to(child.running_mean)
            own.load_state_dict(child.state_dict())
            for parameter, former in zip(own.parameters(), child.parameters(), strict=True):
                parameter.requires_grad_(former.requires_grad)  # of a target network, none is trained
            setattr(module, name, own)
        else:
            synchronise(child, device)
    return module
