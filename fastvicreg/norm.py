"""Batch normalisation over the whole batch where several processes share it, as the official code synchronises it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import record_function

from fastvicreg import stages


class HostSyncBatchNorm(_BatchNorm):
    """``nn.SyncBatchNorm`` for CPU tensors, which that one refuses: same parameters, buffers and values."""

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2, input.shape

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) normalised by the mean and the biased variance over all processes' samples, while training."""
        if not self.training:
            return super().forward(input)
        axes = (0, *range(2, input.ndim))
        shape = (1, -1, *(1,) * (input.ndim - 2))
        local = input.new_tensor([input.numel() / input.shape[1]])
        with record_function(stages.COMM):
            sums = all_reduce(torch.cat([local, input.sum(axes)]))
        count, mean_C = sums[0].detach(), sums[1:] / sums[0].detach()
        centred = input - mean_C.view(shape)
        with record_function(stages.COMM):
            variance_C = all_reduce(centred.square().sum(axes)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale_C = self.weight * torch.rsqrt(variance_C + self.eps)
        return centred * scale_C.view(shape) + self.bias.view(shape)


def synchronise(module: nn.Module, device: str) -> nn.Module:
    """``module`` with its batch norms over all processes; parameters and their names stay."""
    if device.startswith("cuda"):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            own = HostSyncBatchNorm(child.num_features, child.eps, child.momentum)
            own.load_state_dict(child.state_dict())
            setattr(module, name, own)
        else:
            synchronise(child, device)
    return module
