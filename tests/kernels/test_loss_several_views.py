"""VICReg's loss of several views: its definition by loops, its distances' closed form, and two views to the bit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional

from fastvicreg.errors import UserError
from fastvicreg.kernels.loss import expected_covariance, several_views_loss, vicreg_loss
from fastvicreg.kernels.loss.several import mean_pair_distance, spread_pairs

WEIGHTS: dict[str, Any] = {"invariance": 3.0, "variance": 5.0, "covariance": 7.0}
NAMES = ("invariance", "variance", "covariance")
SHAPES = [(4, 7), (8, 4), (2, 3)]  # Gram and covariance form, and the smallest batch


def embeddings(views: int, n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(views * n + d)
    made = 0.6 * torch.randn(views, n, d, generator=generator, dtype=torch.float64) + 1.5
    return tuple(z_ND.to(dtype).requires_grad_() for z_ND in made)


def by_loops(views: tuple[Tensor, ...], form: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The three terms, number by number: the definition is read off the paper's Algorithm 1, not off the code."""
    n, d = views[0].shape
    zero = torch.zeros((), dtype=views[0].dtype)
    distances = []
    for one, other in itertools.combinations(range(len(views)), 2):
        distances.append(sum((((views[one][i] - views[other][i]) ** 2).sum() for i in range(n)), zero) / (n * d))
    hinges, covariances = [], []
    for z_ND in views:
        mean_D = sum((z_ND[i] for i in range(n)), torch.zeros(d, dtype=z_ND.dtype)) / n
        hinge, covariance = zero, zero
        for j in range(d):
            for k in range(d):
                product = sum(((z_ND[i, j] - mean_D[j]) * (z_ND[i, k] - mean_D[k]) for i in range(n)), zero) / (n - 1)
                if j == k:
                    hinge = hinge + functional.relu(1 - (product + 1e-4).sqrt()) / d
                else:
                    covariance = covariance + product**2 / d
        hinges.append(hinge)
        covariances.append(covariance)
    terms = {
        "invariance": sum(distances, zero) / len(distances),
        "variance": (1.0 if form == "official" else 2.0) * sum(hinges, zero) / len(hinges),
        "covariance": 2 * sum(covariances, zero) / len(covariances),
    }
    return sum((WEIGHTS[name] * terms[name] for name in NAMES), zero), terms


@pytest.mark.parametrize("impl", ["reference", "gram"])
@pytest.mark.parametrize("form", ["official", "paper"])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_value_and_gradients_are_the_loops(impl: str, form: Any, count: int, n: int, d: int) -> None:
    views = embeddings(count, n, d)
    found = several_views_loss(views, **WEIGHTS, form=form, impl=impl)
    total, terms = by_loops(views, form)
    torch.testing.assert_close(found.total, total, rtol=1e-9, atol=1e-9)
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), terms[name].detach(), rtol=1e-9, atol=1e-9)
        assert not getattr(found, name).requires_grad
    wanted = torch.autograd.grad(total, views)
    for own, other in zip(torch.autograd.grad(found.total, views), wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
        assert other.abs().max() > 1e-3


@pytest.mark.parametrize("impl", ["reference", "gram"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_of_two_views_it_is_the_paper_s_loss_to_the_bit(impl: str, dtype: torch.dtype) -> None:
    views = embeddings(2, 6, 17, dtype)
    found, wanted = several_views_loss(views, **WEIGHTS, impl=impl), vicreg_loss(*views, **WEIGHTS, impl=impl)
    assert all(torch.equal(own, other) for own, other in zip(found, wanted, strict=True))
    gradients = (torch.autograd.grad(loss.total, views) for loss in (found, wanted))
    assert all(torch.equal(own, other) for own, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("impl", ["reference", "gram"])
def test_views_that_are_alike_count_for_as_much_as_two(impl: str) -> None:
    """The weights' meaning does not depend on the number of views."""
    za, zb = embeddings(2, 6, 17)
    two = several_views_loss((za, zb), **WEIGHTS, impl=impl)
    four = several_views_loss((za, zb, za, zb), **WEIGHTS, impl=impl)
    torch.testing.assert_close(four.variance, two.variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(four.covariance, two.covariance, rtol=1e-12, atol=0)
    torch.testing.assert_close(four.invariance, two.invariance * 4 / 6, rtol=1e-12, atol=0)  # two pairs are the same


@pytest.mark.parametrize("count", [3, 4, 8])
def test_distances_of_all_pairs_need_no_pair(count: int) -> None:
    views = embeddings(count, 6, 5)
    pairs = [functional.mse_loss(a, b) for a, b in itertools.combinations(views, 2)]
    wanted = torch.stack(pairs).mean()
    found = mean_pair_distance(views, "")
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for own, other in zip(torch.autograd.grad(found, views), torch.autograd.grad(wanted, views), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-15)


def test_every_view_has_its_share_of_the_spread() -> None:
    for count in range(3, 10):
        weight = dict.fromkeys(range(count), 0.0)
        for first, second, share in spread_pairs(count):
            weight[first] += share
            weight[second] += share
        assert list(weight.values()) == pytest.approx([2 / count] * count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["reference", "gram"])
def test_half_types_are_reduced_in_fp32(impl: str, dtype: torch.dtype) -> None:
    views = embeddings(4, 8, 33, dtype)
    exact = tuple(z_ND.detach().double().requires_grad_() for z_ND in views)
    found, wanted = several_views_loss(views, impl=impl), several_views_loss(exact, impl="reference")
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total.double(), wanted.total, rtol=1e-2, atol=1e-3)
    for own, other in zip(
        torch.autograd.grad(found.total, views), torch.autograd.grad(wanted.total, exact), strict=True
    ):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), other, rtol=5e-2, atol=5e-3)


def test_autocast_changes_nothing() -> None:
    views = embeddings(4, 6, 17, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = several_views_loss(views, impl="gram")
    assert torch.equal(inside.total, several_views_loss(views, impl="gram").total)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["reference", "gram"])
def test_a_compiler_takes_it_whole(impl: str) -> None:
    views = embeddings(4, 6, 17)

    def several(*z: Tensor) -> Tensor:
        return several_views_loss(z, impl=impl).total

    compiled = torch.compile(several, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(*views), several_views_loss(views, impl=impl).total
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for own, other in zip(torch.autograd.grad(found, views), torch.autograd.grad(wanted, views), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-13)


def test_what_does_not_fit_is_refused() -> None:
    one, two, three = embeddings(3, 6, 5)
    with pytest.raises(ValueError, match="two views or more, got 1"):
        several_views_loss((one,))
    with pytest.raises(ValueError, match=r"must both be \(N, D\)"):
        several_views_loss((one, two, three[:5]))
    with pytest.raises(UserError, match="unknown loss form 'papre'"):
        several_views_loss((one, two, three), form="papre", impl="reference")  # type: ignore[arg-type]


def test_the_expected_covariance_is_that_of_two_views_for_any_number() -> None:
    a, b, c = torch.rand(3, 7, dtype=torch.float64)
    two, six = expected_covariance(6, a, b), expected_covariance(6, a, b, a, b, a, b)
    for own, other in zip(six, two, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-15)
    single = [expected_covariance(6, v, v) for v in (a, b, c)]
    for place, found in enumerate(expected_covariance(6, a, b, c)):
        torch.testing.assert_close(found, torch.stack([pair[place] for pair in single]).mean(), rtol=1e-12, atol=1e-15)


def member(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for impl, (n, d), compiled in itertools.product(("reference", "gram"), SHAPES[:2], (False, True)):
        if compiled and impl == "reference":
            continue
        own = tuple(z.detach()[rank * n // 2 : (rank + 1) * n // 2].requires_grad_() for z in embeddings(3, n, d))

        def loss(*views: Tensor, impl: str = impl) -> Any:
            return tuple(several_views_loss(views, **WEIGHTS, impl=impl, group=dist.group.WORLD))

        terms = (torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss)(*own)
        gradients = [gradient / 2 for gradient in torch.autograd.grad(terms[0], own)]  # DDP's average
        found[impl, n, d, compiled] = ([term.detach() for term in terms], gradients)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_of_one(tmp_path: Any) -> None:
    mp.spawn(member, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert len(halves[0]) == 6
    for impl, n, d, compiled in halves[0]:
        views = embeddings(3, n, d)
        whole = several_views_loss(views, **WEIGHTS, impl="reference")
        wanted = torch.autograd.grad(whole.total, views)
        for rank, found in enumerate(halves):
            terms, gradients = found[impl, n, d, compiled]
            for own, other in zip(terms, whole, strict=True):
                torch.testing.assert_close(own, other.detach(), rtol=1e-9, atol=1e-9)
            rows = slice(rank * n // 2, (rank + 1) * n // 2)
            for own, other in zip(gradients, wanted, strict=True):
                torch.testing.assert_close(own, other[rows], rtol=1e-9, atol=1e-9)
