"""What several methods compute of embeddings: unit vectors, their spread, and the rows of all processes.

Shape suffixes: B this process's batch, M the batch of all processes, D embedding width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.contracts import SIDE_ROWS, Terms
from fastvicreg.kernels.loss.ranks import Ranks, all_rows, group_name


def wide(z_BD: Tensor) -> Tensor:
    """In fp32 at least: autocast's half types keep too few digits for a loss."""
    return z_BD.to(torch.promote_types(z_BD.dtype, torch.float32))


def unit(z_BD: Tensor) -> Tensor:
    """Rows of length 1, in fp32 at least."""
    return F.normalize(wide(z_BD), dim=1)


@torch.no_grad()
def unit_std(*views_BD: Tensor) -> Tensor:
    """Mean over dimensions and views of unit vectors' standard deviation: 1/sqrt(D) where they spread, 0 on collapse.

    Of this process's own samples.
    """
    spread = [F.normalize(z_BD.float(), dim=1).std(0).mean() for z_BD in views_BD]
    return torch.stack(spread).mean()


def spread_parts(*views_BD: Tensor) -> dict[str, Tensor]:
    """``projection_std`` and ``projection_std_healthy``: ``unit_std`` and what it is where unit vectors spread."""
    std = unit_std(*views_BD)
    return {"projection_std": std, "projection_std_healthy": torch.full_like(std, views_BD[0].shape[1] ** -0.5)}


@torch.no_grad()
def kept_sides(**sides_BD: Tensor) -> dict[str, Tensor]:
    """Copies of the first rows of each side's embeddings: what ``Method.sides`` gives until the next loss."""
    return {name: z_BD.detach()[:SIDE_ROWS].clone() for name, z_BD in sides_BD.items()}


def processes() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def batch_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """``group``, or where it is None the group of all processes of the run; None for one process alone."""
    return group or (dist.group.WORLD if processes() > 1 else None)


def batch_ranks(group: dist.ProcessGroup | None) -> Ranks:
    """The processes of ``batch_group``, and which of them this is."""
    found = batch_group(group)
    if found is None or not (name := group_name(found)):
        return Ranks()
    return Ranks(dist.get_world_size(found), dist.get_rank(found), name)


def gathered(z_BD: Tensor, ranks: Ranks) -> Tensor:
    """The (M, D) rows of all processes, in rank order, with gradient.

    Backward sums each row's gradient over the processes. A process whose loss is the whole batch's, or the mean over
    its own anchors, so gets ``ranks.size`` times the whole loss's gradient for its rows, and the average that
    DistributedDataParallel takes is the gradient.
    """
    return z_BD if ranks.size == 1 else all_rows(z_BD, ranks)


@torch.no_grad()
def gathered_values(z_BD: Tensor, ranks: Ranks) -> Tensor:
    """``gathered`` without gradient."""
    return gathered(z_BD.detach(), ranks)


def of_all_processes(total: Tensor, parts: dict[str, Tensor], group: dist.ProcessGroup | None) -> Terms:
    """Means over this process's rows as those over all processes' rows, by a small collective; the gradient stays.

    DistributedDataParallel averages the gradients, so that the values say what is trained on. Each process has as many
    rows; what is the whole batch's already stays as it is but for rounding.
    """
    ranks = batch_ranks(group)
    if ranks.size == 1:
        return Terms(total, parts)
    own = torch.stack([total.detach(), *(part.to(total.dtype) for part in parts.values())])
    whole, *means = (ranks.add(own) / ranks.size).unbind()
    return Terms(total + (whole - total).detach(), dict(zip(parts, means, strict=True)))
