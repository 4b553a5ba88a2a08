"""The batch norms of a run: over all processes' samples, with statistics a view, in one step with what follows them."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastvicreg.kernels.norm import BatchNorm, JointViews
from fastvicreg.train.distributed import PATIENCE


def own_group(*, patience: float = PATIENCE) -> str:
    """Name of a new process group of all processes, which wait ``patience`` seconds for each other; each must call it.

    The norms' small collectives have a communicator to themselves: in the gradients' they would wait behind these.
    """
    group = dist.new_group(timeout=timedelta(seconds=patience))
    assert isinstance(group, dist.ProcessGroup)
    return group.group_name


def replace_norms(
    module: nn.Module,
    *,
    impl: str = "auto",
    ranks: int = 1,
    group: str = "",
    joint: bool = False,
    recompute: bool = False,
) -> nn.Module:
    """``module`` with ``kernels.norm.BatchNorm`` for each of torch's; parameters, buffers and their names stay.

    The statistics are over the ``ranks`` processes of ``group``, as the official code synchronises them. With ``joint``
    ``methods.views.each_view`` takes views of one size through ``module`` as one batch; with ``recompute`` it lets
    backward compute the norms' outputs again, which autograd then does not keep. A ReLU that follows a norm in
    an ``nn.Sequential`` becomes part of it.
    """
    seen = {"joint_views": JointViews() if joint else None, "recompute": recompute}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, BatchNorm.of(child, impl=impl, ranks=ranks, group=group, **seen))
        if isinstance(parent, nn.Sequential):
            _absorb_relus(parent)
    for part in module.modules():  # what ``each_view`` is given
        for name, value in seen.items():
            setattr(part, name, value)
    return module


def _absorb_relus(layers: nn.Sequential) -> None:
    for place in range(len(layers) - 1):
        norm = layers[place]
        if isinstance(norm, BatchNorm) and isinstance(layers[place + 1], nn.ReLU):
            norm.relu = True
            layers[place + 1] = nn.Identity()
