"""Which position of one feature map belongs to which of another: by features, or by where both lie in the image.

Shape suffixes: B batch, N and M positions of two maps, K chosen positions, S a map's side, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Matches(NamedTuple):
    """Positions of one map, in ascending order, and of another map the one that belongs to each; int64."""

    own_BK: Tensor | None
    """None: all, in their order."""
    other_BK: Tensor


def centres(place_B5: Tensor, side: int) -> Tensor:
    """Where the centres of a view's ``side`` x ``side`` positions lie in its image: (B, S * S, 2) as x, y in pixels.

    ``place_B5`` is a view's part of ``Batch.places_BV5``. Positions of a flipped view run from right to left.
    """
    x_B1, y_B1, width_B1, height_B1, flip_B1 = place_B5.split(1, dim=1)
    share_S = (torch.arange(side, device=place_B5.device, dtype=place_B5.dtype) + 0.5) / side
    down_BS = y_B1 + height_B1 * share_S
    across_BS = x_B1 + width_B1 * torch.where(flip_B1 > 0.5, 1 - share_S, share_S)
    grids = across_BS[:, None, :].expand(-1, side, -1), down_BS[:, :, None].expand(-1, -1, side)
    return torch.stack(grids, -1).flatten(1, 2)


def by_location(own_BN2: Tensor, other_BM2: Tensor, count: int) -> Matches:
    """The ``count`` positions that lie nearest to one of the other map's, each with that one (paper section 3)."""
    distance_BNM = (own_BN2[:, :, None] - other_BM2[:, None]).square().sum(-1)
    least_BN, other_BN = distance_BNM.min(2)
    if count == least_BN.shape[1]:
        return Matches(None, other_BN)
    # In the map's order, as the released code's: a statistic over the batch is of the k-th chosen position.
    own_BK = least_BN.sort(dim=1, stable=True).indices[:, :count].sort(1).values
    return Matches(own_BK, other_BN.gather(1, own_BK))


def by_features(own_BNC: Tensor, other_BMC: Tensor) -> Matches:
    """Every position with the other map's nearest in l2 distance (paper section 3; the released ``l2_all_matches``)."""
    # |a - b|^2 without |a|^2, which is the same for all b.
    return Matches(None, torch.baddbmm(other_BMC.square().sum(2)[:, None], own_BNC, other_BMC.mT, alpha=-2).argmin(2))


def chosen(map_BNC: Tensor, at_BK: Tensor | None) -> Tensor:
    """The rows ``at_BK`` of a map: (B, K, C); the map itself where None.

    By a product with ones and zeros: the gradient of an indexed read adds in no fixed order on CUDA where a position is
    chosen twice, and a resumed run would not be the same to the bit.
    """
    if at_BK is None:
        return map_BNC
    positions_N = torch.arange(map_BNC.shape[1], device=at_BK.device)
    return (at_BK[:, :, None] == positions_N).to(map_BNC.dtype) @ map_BNC
