"""VICRegL: VICReg's terms on whole views, and on positions of their feature maps that belong together.

Shape suffixes: B this process's batch, V views, N positions of a map, D embedding width, C channels, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Spread, Terms, by_dimension
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss import known, vicreg_loss
from fastvicreg.kernels.loss.operators import without_autocast
from fastvicreg.methods.embeddings import batch_group, batch_ranks, kept_sides, of_all_processes, wide
from fastvicreg.methods.heads import expander
from fastvicreg.methods.vicreg.method import spread_of
from fastvicreg.methods.vicregl.config import VICRegLConfig
from fastvicreg.methods.vicregl.criterion import COMPARED, Criterion, local_criterion, pair_shares
from fastvicreg.methods.vicregl.matching import Matches, by_features, by_location, centres
from fastvicreg.methods.views import each_view


class Embeddings(NamedTuple):
    """The views' embeddings and places, the first one's features, detached, and for the local criterion the embeddings
    of the maps' positions.
    """

    views_BD: tuple[Tensor, ...]
    maps_BNC: tuple[Tensor, ...]
    places_BV5: Tensor
    features_BF: Tensor


class VICRegL(nn.Module):
    """Paper section 3; official main_vicregl.py after its fix of the local loss, without ``--fast-vc-reg``.

    Two views, or more of which the first two are large. Positions follow a view's flip; the released code's
    ``--no-flip-grid``, its default, leaves them where they were.
    """

    def __init__(self, encoder: Encoder, config: VICRegLConfig, *, impl: str = "auto") -> None:
        """``UserError`` where ``impl`` names no implementation of the loss, and for an encoder without a map."""
        super().__init__()
        known(impl)
        self.encoder, self.config, self.impl = encoder, config, impl
        norms = {"batch_norm": config.batch_norm, "layer_norm": config.layer_norm}
        self.expander = expander(encoder.features, config.expander, **norms)
        self.local_projector: nn.Module | None = None
        self.columns = (
            Column("invariance", "inv"),
            Column("variance", "var"),
            Column("covariance", "cov", scale="log"),
        )
        if config.is_local:
            channels = getattr(encoder, "map_features", 0)
            if not channels:
                raise UserError(
                    f"--method vicregl matches positions of a feature map, and {type(encoder).__name__} gives none: "
                    "give --arch resnet50, another ResNet, ConvNeXt or ViT, or --alpha 1."
                )
            self.local_projector = expander(channels, config.local_projector, **norms)
            self.columns += (
                Column("local_invariance", "l-inv"),
                Column("local_variance", "l-var"),
                Column("local_covariance", "l-cov", scale="log"),
            )
        self.columns += (Column("embedding_std", "std"),)
        self.process_group: dist.ProcessGroup | None = None
        """Processes whose rows make the batch; None: all of the run's."""
        self.sides: dict[str, Tensor] = {}

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"encoder": self.get_submodule("encoder")}

    @property
    def head(self) -> nn.Module:
        return self.expander

    @property
    def spread(self) -> Spread:
        """Of the views' embeddings, as VICReg's."""
        return spread_of(self.config.invariance, self.config.variance, self.config.covariance)

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """The learning rate is all that varies."""
        return {}

    def embed(self, views: tuple[Tensor, ...]) -> Embeddings:
        """Two square views or more, each (B, 3, H, H) of any size, and after them their places (B, V, 5).

        ``UserError`` for fewer views, and for maps with fewer positions than ``local_matches``.
        """
        *images, places_BV5 = views
        if len(images) < COMPARED:
            raise UserError(f"VICRegL takes 2 views or more, not {len(images)}: choose another --recipe.")
        if self.local_projector is None:
            features = each_view(self.encoder, images)
            return Embeddings(tuple(each_view(self.expander, features)), (), places_BV5, features[0].detach())
        seen = each_view(self.encoder, images, tokens=True)
        features, maps = [feature_BF for feature_BF, _ in seen], [map_BNC for _, map_BNC in seen]
        self._check(images, maps)
        rows = each_view(self.local_projector, [map_BNC.flatten(0, 1) for map_BNC in maps])
        projected = [own.unflatten(0, map_BNC.shape[:2]) for own, map_BNC in zip(rows, maps, strict=True)]
        embedded = tuple(each_view(self.expander, features))
        return Embeddings(embedded, tuple(projected), places_BV5, features[0].detach())

    @torch.no_grad()
    def check_sizes(self, sizes: Sequence[int]) -> None:
        """``UserError`` where views of these sides have maps that cannot be matched: before the first step."""
        if self.local_projector is None:
            return
        encoder = self.get_submodule("encoder")
        device, training = next(encoder.parameters()).device, encoder.training
        images = [torch.zeros(1, 3, side, side, device=device) for side in sizes]
        try:
            self._check(images, [encoder.eval()(image, tokens=True)[1] for image in images])
        finally:
            encoder.train(training)

    def _check(self, images: Sequence[Tensor], maps: Sequence[Tensor]) -> None:
        for count, image, map_BNC in zip(self._counts(maps), images, maps, strict=True):
            _check_map(count, image, map_BNC)

    def _counts(self, maps: Sequence[Tensor]) -> list[int]:
        """Positions of each map that are matched by location: maps smaller than the first are small crops'."""
        if not self.config.local_locations:
            return [0] * len(maps)
        large, small = self.config.local_matches[0], self.config.local_matches[-1]
        return [large if map_BNC.shape[1] >= maps[0].shape[1] else small for map_BNC in maps]

    def target(self, views: tuple[Tensor, ...]) -> None:
        """All branches are trained: there is no target network."""

    def loss(self, embeddings: Embeddings, targets: None) -> Terms:
        """``alpha`` times the global criterion and 1 - ``alpha`` times the local one, each of three weighted terms.

        Beside them ``parts`` holds ``embedding_std``, ``local_std`` and ``representation_std``, the mean over
        dimensions of the standard deviation over the batch. Among several processes the terms are the whole batch's,
        the deviations of this process's own samples.
        """
        config = self.config
        weights = (config.invariance, config.variance, config.covariance)
        self.sides = kept_sides(a=embeddings.views_BD[0], b=embeddings.views_BD[1])
        with without_autocast(embeddings.views_BD[0].device.type):
            total, found = self._global(embeddings.views_BD)
            parts: dict[str, Tensor] = dict(zip(("invariance", "variance", "covariance"), found, strict=True))
            total = config.alpha * total
            if embeddings.maps_BNC:
                local = self._local(embeddings)
                weighted = [weight * term for weight, term in zip(weights, local, strict=True)]
                total = total + (1 - config.alpha) * torch.stack(weighted).sum()
                parts |= {f"local_{name}": term.detach() for name, term in local._asdict().items()}
            total, parts = of_all_processes(total, parts, self.process_group)
        return Terms(total, parts | _health(embeddings))

    def _global(self, views_BD: Sequence[Tensor]) -> tuple[Tensor, Criterion]:
        """The weighted sum, and the three terms, detached: VICReg's loss of two views at a time.

        Invariance is the mean over pairs of one of the first two views and another; variance and covariance are means
        over views, so that covariance is half of VICReg's.
        """
        config, count = self.config, len(views_BD)
        terms: list[Tensor] = [views_BD[0].new_zeros((), dtype=wide(views_BD[0]).dtype) for _ in range(4)]
        shares = pair_shares(count)
        for first in range(0, count, 2):
            second = min(first + 1, count - 1)  # the last of an odd number stands beside itself, for half
            share = (second - first + 1) / count
            same_pair = shares.pop((first, second), 0.0)
            own = vicreg_loss(
                views_BD[first],
                views_BD[second],
                invariance=config.invariance * same_pair,
                variance=config.variance * share,
                covariance=config.covariance * share / 2,
                impl=self.impl,
                group=batch_group(self.process_group),
            )
            found = own.total, same_pair * own.invariance, share * own.variance, share / 2 * own.covariance
            terms = [term + new for term, new in zip(terms, found, strict=True)]
        total, invariance, variance, covariance = terms
        for (one, other), share in shares.items():
            distance = share * F.mse_loss(wide(views_BD[one]), wide(views_BD[other]))
            total, invariance = total + config.invariance * distance, invariance + distance.detach()
        return total, Criterion(invariance, variance, covariance)

    def _local(self, embeddings: Embeddings) -> Criterion:
        config, maps = self.config, [wide(map_BNC) for map_BNC in embeddings.maps_BNC]
        counts, places_BV5 = self._counts(maps), embeddings.places_BV5
        with torch.no_grad():
            seen = zip(maps, places_BV5.unbind(1), strict=True)
            grids = [centres(place_B5, isqrt(own.shape[1])) for own, place_B5 in seen]

        @torch.no_grad()
        def matches(one: int, other: int) -> list[Matches]:
            found = [by_features(maps[one], maps[other])] if config.local_features else []
            if config.local_locations:
                found.append(by_location(grids[one], grids[other], counts[one]))
            return found

        return local_criterion(maps, matches, batch_ranks(self.process_group))

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """There is no target network to move."""

    def param_groups(self) -> list[ParamGroup]:
        heads = [head for head in (self.expander, self.local_projector) if head is not None]
        return [*self.encoder.param_groups(), *(group for head in heads for group in by_dimension(head))]


def _check_map(count: int, image_BCHW: Tensor, map_BNC: Tensor) -> None:
    """``UserError`` where a view has no square map, or one of fewer positions than ``count``."""
    height, width = image_BCHW.shape[2:]
    positions = map_BNC.shape[1]
    if isqrt(positions) ** 2 != positions or height != width:
        raise UserError(
            f"VICRegL places positions of square maps, and views of {width} x {height} px have one of {positions}: "
            "give --alpha 1 or another --arch."
        )
    if count > positions:
        raise UserError(
            f"--local-matches {count} is more than the {positions} positions that a view of {width} px has in its map: "
            f"give at most {positions}."
        )


@torch.no_grad()
def _health(embeddings: Embeddings) -> dict[str, Tensor]:
    def spread(rows: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([own.float().std(0).mean() for own in rows[:COMPARED]]).mean()

    parts = {"embedding_std": spread(embeddings.views_BD), "representation_std": spread((embeddings.features_BF,))}
    return parts | ({"local_std": spread(embeddings.maps_BNC)} if embeddings.maps_BNC else {})
