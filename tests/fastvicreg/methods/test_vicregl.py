"""VICRegL: the loss by its definition, positions that belong together, and the runs and refusals that go with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from methods import LOCAL, batch_for, encoder, vicregl
from torch import Tensor

from fastvicreg.encoders.vit.network import VisionTransformer
from fastvicreg.methods.vicregl.config import VICRegLConfig
from fastvicreg.methods.vicregl.matching import by_features, by_location, centres, chosen
from fastvicreg.methods.vicregl.method import Embeddings
from fastvicreg.train.batch_norm import replace_norms


def embeddings(sides: tuple[int, ...], samples: int = 4) -> Embeddings:
    """Of views whose maps have these sides, fp64, ready to take a gradient, with places of all kinds."""
    generator = torch.Generator().manual_seed(len(sides))

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    corner_BV2 = torch.rand(samples, len(sides), 2, generator=generator) * 90
    size_BV2 = 20 + torch.rand(samples, len(sides), 2, generator=generator) * 100
    flip_BV1 = (torch.rand(samples, len(sides), 1, generator=generator) > 0.5).float()
    places_BV5 = torch.cat((corner_BV2, size_BV2, flip_BV1), 2)
    maps = tuple(noise(samples, side * side, 5) for side in sides)
    return Embeddings(tuple(noise(samples, 6) for _ in sides), maps, places_BV5, noise(samples, 4).detach())


def spread(rows_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Hinge and covariance of one set of vectors, entry by entry (VICReg paper, eq. 1 to 4)."""
    n, d = rows_BD.shape
    centred = rows_BD - rows_BD.sum(0) / n
    hinge, covariance = rows_BD.new_zeros(()), rows_BD.new_zeros(())
    for i in range(d):
        for j in range(d):
            entry = (centred[:, i] * centred[:, j]).sum() / (n - 1)
            if i == j:
                hinge = hinge + torch.clamp(1 - (entry + 1e-4).sqrt(), min=0) / d
            else:
                covariance = covariance + entry**2 / d
    return hinge, covariance


def position(place: list[float], side: int, at: int) -> tuple[float, float]:
    """The centre of one position in the image, x and y."""
    x, y, width, height, flip = place
    row, column = divmod(at, side)
    column = side - 1 - column if flip else column
    return x + width * (column + 0.5) / side, y + height * (row + 0.5) / side


def matched(one: int, other: int, found: Embeddings, count: int, way: str) -> list[list[tuple[int, int]]]:
    """For each sample the (own, other) positions that belong together, by loops."""
    every = []
    own_side, other_side = (int(found.maps_BNC[view].shape[1] ** 0.5) for view in (one, other))
    for sample in range(len(found.places_BV5)):
        nearest = []
        for own in range(own_side**2):
            distances = []
            for candidate in range(other_side**2):
                if way == "features":
                    gap = found.maps_BNC[one][sample, own] - found.maps_BNC[other][sample, candidate]
                    distances.append((float((gap.detach() ** 2).sum()), candidate))
                else:
                    a = position(found.places_BV5[sample, one].tolist(), own_side, own)
                    b = position(found.places_BV5[sample, other].tolist(), other_side, candidate)
                    distances.append(((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2, candidate))
            nearest.append((*min(distances), own))
        kept = sorted(nearest)[:count] if way == "locations" else nearest
        every.append(sorted((own, candidate) for _, candidate, own in kept))
    return every


def by_definition(config: VICRegLConfig, found: Embeddings) -> tuple[Tensor, list[Tensor]]:
    """The weighted loss, and the six terms: paper section 3, main_vicregl.py for what is halved and averaged."""
    views, count = found.views_BD, len(found.views_BD)
    ordered = [(i, j) for i in range(2) for j in range(count) if j != i]
    zero = views[0].new_zeros(())
    terms = [zero] * 6
    for i, j in ordered:
        terms[0] = terms[0] + ((views[i] - views[j]) ** 2).mean() / len(ordered)
    for view in views:
        hinge, covariance = spread(view)
        terms[1], terms[2] = terms[1] + hinge / count, terms[2] + covariance / count
    ways = [way for way in ("features", "locations") if getattr(config, f"local_{way}")] if config.is_local else []
    for i, j in ordered:
        for way in ways:
            for one, other in ((i, j), (j, i)):
                large = found.maps_BNC[one].shape[1] == found.maps_BNC[0].shape[1]
                pairs = matched(one, other, found, config.local_matches[0 if large else 1], way)
                for place in range(len(pairs[0])):
                    x = torch.stack([found.maps_BNC[one][b, pairs[b][place][0]] for b in range(len(pairs))])
                    y = torch.stack([found.maps_BNC[other][b, pairs[b][place][1]] for b in range(len(pairs))])
                    share = 1 / (len(pairs[0]) * 2 * len(ordered))
                    (hinge_x, covariance_x), (hinge_y, covariance_y) = spread(x), spread(y)
                    terms[3] = terms[3] + share * ((x - y) ** 2).mean()
                    terms[4] = terms[4] + share * (hinge_x + hinge_y) / 2
                    terms[5] = terms[5] + share * (covariance_x + covariance_y) / 2
    weights = [config.invariance, config.variance, config.covariance]
    criteria = [sum((w * t for w, t in zip(weights, part, strict=True)), zero) for part in (terms[:3], terms[3:])]
    return config.alpha * criteria[0] + (1 - config.alpha) * criteria[1], terms


@pytest.mark.parametrize(
    ("sides", "settings"),
    [
        ((3, 3), {}),
        ((3, 3), {"local_matches": (9,), "alpha": 0.9}),
        ((3, 3), {"local_features": False}),
        ((3, 3), {"local_locations": False}),
        ((3, 3, 2), {}),
        pytest.param((3, 3, 2, 2), {}, marks=pytest.mark.slow),
        ((2, 2, 2), {"alpha": 1.0}),
    ],
)
def test_the_loss_is_its_definition(sides: tuple[int, ...], settings: dict[str, Any]) -> None:
    config = replace(LOCAL, local_matches=(5, 2)) if not settings else replace(LOCAL, **settings)
    found = embeddings(sides)
    given = found if config.is_local else found._replace(maps_BNC=())
    expected, terms = by_definition(replace(config, local_matches=(*config.local_matches, 2)[:2]), found)
    got = vicregl(config).loss(given, None)
    names = ["invariance", "variance", "covariance", "local_invariance", "local_variance", "local_covariance"]
    for name, term in list(zip(names, terms, strict=True))[: 6 if config.is_local else 3]:
        assert float(got.parts[name]) == pytest.approx(float(term.detach()), rel=1e-9), name
    assert float(got.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    leaves = [*found.views_BD, *(found.maps_BNC if config.is_local else ())]
    wanted = torch.autograd.grad(expected, leaves)
    for mine, theirs in zip(torch.autograd.grad(got.total, leaves), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_a_batch_above_the_width_has_the_same_loss_as_its_definition() -> None:
    """Covariances are then C x C products, where smaller batches have theirs from B x B ones."""
    found = embeddings((2, 2), samples=9)
    expected, _ = by_definition(replace(LOCAL, local_matches=(3, 3)), found)
    got = vicregl(replace(LOCAL, local_matches=(3,))).loss(found, None)
    assert float(got.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


def of(*places: tuple[float, ...]) -> list[Tensor]:
    """One sample's views as (1, 5) each."""
    return [torch.tensor([place], dtype=torch.float32) for place in places]


def test_positions_of_one_box_belong_to_themselves_and_of_a_flipped_one_to_their_mirror_s() -> None:
    same, other, flipped = (centres(place, 3) for place in of((5, 7, 60, 30, 0), (5, 7, 60, 30, 0), (5, 7, 60, 30, 1)))
    assert by_location(same, other, 9).other_BK.tolist() == [list(range(9))]
    mirror = [2, 1, 0, 5, 4, 3, 8, 7, 6]
    assert by_location(same, flipped, 9).other_BK.tolist() == [mirror]
    assert by_location(flipped, same, 9).other_BK.tolist() == [mirror]
    assert by_location(flipped, flipped, 9).other_BK.tolist() == [list(range(9))]


def test_positions_of_a_part_belong_to_those_of_the_whole_that_they_lie_on() -> None:
    part, whole, turned = (centres(place, side) for place, side in zip(
        of((40, 0, 40, 40, 0), (0, 0, 80, 80, 0), (0, 0, 80, 80, 1)), (2, 4, 4), strict=True
    ))  # fmt: skip
    assert part[0].tolist() == [[50, 10], [70, 10], [50, 30], [70, 30]]
    assert by_location(part, whole, 4).other_BK.tolist() == [[2, 3, 6, 7]]
    assert by_location(part, turned, 4).other_BK.tolist() == [[1, 0, 5, 4]]
    own_BK, other_BK = by_location(whole, part, 4)
    assert own_BK is not None
    assert own_BK.tolist() == [[2, 3, 6, 7]]  # of the sixteen those that the part covers
    assert other_BK.tolist() == [[0, 1, 2, 3]]


def test_features_find_their_own_copy_wherever_it_is() -> None:
    map_BNC = torch.randn(4, 9, 6)
    moved = torch.stack([torch.randperm(9) for _ in range(4)])
    shuffled_BNC = torch.stack([own[order] for own, order in zip(map_BNC, moved, strict=True)])
    own_BK, other_BK = by_features(shuffled_BNC, map_BNC)
    assert own_BK is None
    assert torch.equal(other_BK, moved)
    assert torch.equal(chosen(map_BNC, other_BK), shuffled_BNC)


def test_an_encoder_s_map_is_what_its_features_are_of() -> None:
    x_BCHW = torch.randn(2, 3, 64, 64)
    for net, positions in ((encoder(), 16), (VisionTransformer(32, 2, 1, 8, 8), 64)):
        features_BF, map_BNC = net(x_BCHW, tokens=True)
        assert map_BNC.shape == (2, positions, net.map_features)
        assert torch.equal(features_BF, net(x_BCHW))
        changed = x_BCHW.clone()
        changed[:, :, :16, -16:] += 5  # the upper right corner
        if isinstance(net, VisionTransformer):
            continue  # all of its tokens look at all patches
        assert torch.allclose(map_BNC.mean(1), features_BF, atol=1e-6)
        moved = (net.eval()(changed, tokens=True)[1] - net(x_BCHW, tokens=True)[1]).abs().sum((0, 2))
        assert int(moved.argmax()) == 3


def test_joint_views_have_the_separate_ones_loss() -> None:
    totals = []
    for joint in (False, True):
        method = vicregl(replace(LOCAL, local_matches=(1,))).double()
        replace_norms(method, impl="reference", joint=joint)
        batch = batch_for(method, 8, torch.float64)
        totals.append(float(method.loss(method.embed(batch.inputs), None).total.detach()))
    assert totals[0] == pytest.approx(totals[1], rel=1e-9)
