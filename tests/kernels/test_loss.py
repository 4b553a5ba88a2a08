"""The VICReg loss against the paper's sums written as loops, and its implementations against each other.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastvicreg.contracts import UserError
from fastvicreg.kernels.loss import Form, LossTerms, choose, gram, vicreg_loss
from fastvicreg.kernels.loss.operators import Weights
from fastvicreg.kernels.loss.ranks import Ranks

SIZES = ((2, 1), (2, 7), (5, 5), (7, 3), (33, 65), (64, 512), (128, 64))
IMPLEMENTATIONS = ("reference", "gram")


def embeddings(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two correlated views off centre, whose columns lie to either side of the hinge."""
    generator = torch.Generator().manual_seed(seed)
    za_ND, noise_ND = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    za_ND = za_ND * torch.linspace(0.3, 1.7, d, dtype=torch.float64) + 0.5
    return za_ND.to(dtype), (za_ND + 0.4 * noise_ND - 1).to(dtype)


def with_gradients(za_ND: Tensor, zb_ND: Tensor, **options: Any) -> tuple[LossTerms, Tensor, Tensor]:
    za_ND, zb_ND = za_ND.detach().requires_grad_(), zb_ND.detach().requires_grad_()
    terms = vicreg_loss(za_ND, zb_ND, **options)
    grad_a_ND, grad_b_ND = torch.autograd.grad(terms.total, (za_ND, zb_ND))
    return terms, grad_a_ND, grad_b_ND


def relative_error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm().clamp(min=1e-300))


def algorithm_1(za: list[list[float]], zb: list[list[float]], gamma: float, eps: float) -> tuple[float, float, float]:
    """Invariance, variance (not halved) and covariance, element by element from the paper's equations 1 to 5."""
    n, d = len(za), len(za[0])
    invariance = sum((za[i][j] - zb[i][j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    variance = covariance = 0.0
    for z in (za, zb):
        mean = [math.fsum(z[i][j] for i in range(n)) / n for j in range(d)]
        c = [
            [math.fsum((z[i][j] - mean[j]) * (z[i][k] - mean[k]) for i in range(n)) / (n - 1) for k in range(d)]
            for j in range(d)
        ]
        variance += sum(max(0.0, gamma - math.sqrt(c[j][j] + eps)) for j in range(d)) / d
        covariance += sum(c[j][k] ** 2 for j in range(d) for k in range(d) if j != k) / d
    return invariance, variance, covariance


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("n", "d"), [(2, 1), (4, 6), (6, 6), (9, 4)])
def test_terms_are_those_of_algorithm_1(impl: str, n: int, d: int):
    za_ND, zb_ND = embeddings(n, d)
    invariance, variance, covariance = algorithm_1(za_ND.tolist(), zb_ND.tolist(), gamma=1.2, eps=1e-3)
    shares: dict[Form, float] = {"official": 0.5, "paper": 1.0}
    for form, share in shares.items():
        options: dict[str, Any] = {"invariance": 3.0, "variance": 5.0, "covariance": 7.0, "gamma": 1.2, "eps": 1e-3}
        terms = vicreg_loss(za_ND, zb_ND, form=form, impl=impl, **options)
        assert terms.invariance.item() == pytest.approx(invariance, rel=1e-12)
        assert terms.variance.item() == pytest.approx(share * variance, rel=1e-12)
        assert terms.covariance.item() == pytest.approx(covariance, rel=1e-12)
        total = 3 * invariance + 5 * share * variance + 7 * covariance
        assert terms.total.item() == pytest.approx(total, rel=1e-12)


def test_defaults_are_the_official_ones():
    za_ND, zb_ND = embeddings(8, 5)
    terms = vicreg_loss(za_ND, zb_ND)
    invariance, variance, covariance = algorithm_1(za_ND.tolist(), zb_ND.tolist(), gamma=1.0, eps=1e-4)
    assert terms.total.item() == pytest.approx(25 * invariance + 25 * variance / 2 + covariance, rel=1e-12)


@pytest.mark.parametrize("form", ["official", "paper"])
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_gram_agrees_with_the_reference_in_fp64(n: int, d: int, form: str):
    views = embeddings(n, d)
    weights = {"invariance": 2.0, "variance": 30.0, "covariance": 4.0}  # so that no part's gradient is lost in another
    truth, *truth_grads = with_gradients(*views, impl="reference", form=form, **weights)
    found, *found_grads = with_gradients(*views, impl="gram", form=form, **weights)
    for name in LossTerms._fields:
        assert getattr(found, name).item() == pytest.approx(getattr(truth, name).item(), rel=1e-12, abs=1e-300), name
    for found_ND, truth_ND in zip(found_grads, truth_grads, strict=True):
        assert relative_error(found_ND, truth_ND) < 1e-12


@pytest.mark.parametrize("part", ["invariance", "variance", "covariance"])
@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5)])
def test_each_part_has_the_gradient_of_its_finite_differences(n: int, d: int, part: str):
    weights: dict[str, Any] = {"invariance": 0.0, "variance": 0.0, "covariance": 0.0, part: 1.0}
    views = tuple(z_ND.requires_grad_() for z_ND in embeddings(n, d))
    assert torch.autograd.gradcheck(lambda za, zb: vicreg_loss(za, zb, impl="gram", **weights).total, views)


TOLERANCE = {  # of the total and of the gradient, both relative to fp64 on the embeddings as rounded
    torch.float32: (1e-6, 2e-6),
    torch.bfloat16: (1e-4, 4e-3),
    torch.float16: (2e-5, 5e-4),
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("n", "d"), [(5, 5), (33, 65), (64, 512), (128, 64), (100, 3000)])
def test_lower_precision_stays_near_fp64(n: int, d: int, dtype: torch.dtype, impl: str):
    views = embeddings(n, d, dtype)
    truth, *truth_grads = with_gradients(*(z_ND.double() for z_ND in views), impl="reference")
    terms, *grads = with_gradients(*views, impl=impl)
    assert terms.total.dtype == torch.float32
    assert terms.total.item() == pytest.approx(truth.total.item(), rel=TOLERANCE[dtype][0])
    for grad_ND, truth_ND in zip(grads, truth_grads, strict=True):
        assert grad_ND.dtype == dtype
        assert relative_error(grad_ND, truth_ND) < TOLERANCE[dtype][1]


@pytest.mark.parametrize(("n", "d"), [(16, 48), (48, 16)])
def test_a_loss_scale_acts_before_gradients_are_rounded_to_fp16(n: int, d: int):
    views = tuple((0.9 + 0.1 * z_ND).half() for z_ND in embeddings(n, d))
    weights = {"invariance": 1e-6, "variance": 1e-6, "covariance": 1e-6}  # beyond what fp16 can hold unscaled
    _, *truth_grads = with_gradients(*(z_ND.double() for z_ND in views), impl="reference", **weights)
    leaves = tuple(z_ND.requires_grad_() for z_ND in views)
    scaled = torch.autograd.grad(vicreg_loss(*leaves, impl="gram", **weights).total * 2.0**24, leaves)
    for scaled_ND, truth_ND in zip(scaled, truth_grads, strict=True):
        assert truth_ND.abs().max() < 2.0**-24
        assert relative_error(scaled_ND.double() / 2.0**24, truth_ND) < 1e-3


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("n", "d"), [(16, 48), (48, 16)])
def test_a_common_offset_of_fp32_embeddings_is_centred_away(n: int, d: int, impl: str):
    views = tuple(z_ND.float() + 1000 for z_ND in embeddings(n, d))
    truth, *truth_grads = with_gradients(*(z_ND.double() for z_ND in views), impl="reference")
    terms, *grads = with_gradients(*views, impl=impl)
    assert terms.total.item() == pytest.approx(truth.total.item(), rel=1e-4)
    assert all(relative_error(g, t) < 1e-3 for g, t in zip(grads, truth_grads, strict=True))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4])
@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)])
def test_collapsed_and_exploded_embeddings_agree_with_the_reference(n: int, d: int, scale: float):
    views = tuple(scale * z_ND for z_ND in embeddings(n, d))
    truth, *truth_grads = with_gradients(*views, impl="reference")
    terms, *grads = with_gradients(*views, impl="gram")
    assert terms.total.item() == pytest.approx(truth.total.item(), rel=1e-12)
    for grad_ND, truth_ND in zip(grads, truth_grads, strict=True):
        assert torch.isfinite(grad_ND).all()
        torch.testing.assert_close(grad_ND, truth_ND, rtol=1e-10, atol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_column_exactly_at_the_hinge_has_relu_s_zero_gradient(impl: str):
    at_hinge, inside = (-1.0, -1.0, 0.0, 1.0, 1.0), (-0.5, -0.5, 0.0, 0.5, 0.5)  # deviations 1 and 1/2
    z_ND = torch.tensor([at_hinge, inside], dtype=torch.float64).T
    weights = {"invariance": 0.0, "variance": 1.0, "covariance": 0.0, "eps": 0.0}
    _, grad_ND, _ = with_gradients(z_ND, z_ND, impl=impl, **weights)
    assert not grad_ND[:, 0].any()
    # d/dz of (1 - std) / 2 / D is -(z - mean) / std / (N - 1) / 2 / D.
    torch.testing.assert_close(grad_ND[:, 1], -z_ND[:, 1] / 0.5 / 4 / 2 / 2)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_non_finite_embedding_shows_in_the_total(impl: str, poison: float):
    za_ND, zb_ND = embeddings(4, 6)
    za_ND[1, 2] = poison
    assert not torch.isfinite(vicreg_loss(za_ND, zb_ND, impl=impl).total)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(8, 300), (300, 8)])
def test_gram_forms_nothing_larger_than_the_embeddings(n: int, d: int, dtype: torch.dtype):
    views = embeddings(n, d, dtype)
    weights = Weights(25.0, 25.0, 1.0, 0.5, 1.0, 1e-4)
    with LargestTensor() as largest:  # of what the operator does, which a mode sees as one
        (total, *_), kept = gram.forward(*views, weights, Ranks())
        gram.backward(torch.ones_like(total), *views, kept, weights, Ranks(), (True, True))
    assert largest.elements == n * d
    if n < d:
        with LargestTensor() as reference:
            with_gradients(*views, impl="reference")
        assert reference.elements == d * d


def test_non_contiguous_embeddings_and_a_single_gradient():
    za_ND, zb_ND = embeddings(12, 20)
    _, truth_a_ND, truth_b_ND = with_gradients(za_ND, zb_ND, impl="reference")
    strided_ND = torch.stack((zb_ND, zb_ND), dim=2)[:, :, 1]
    _, grad_a_ND, grad_b_ND = with_gradients(za_ND.T.contiguous().T, strided_ND)
    assert relative_error(grad_a_ND, truth_a_ND) < 1e-12
    assert relative_error(grad_b_ND, truth_b_ND) < 1e-12

    leaf_ND = zb_ND.clone().requires_grad_()
    vicreg_loss(za_ND, leaf_ND).total.backward()
    torch.testing.assert_close(leaf_ND.grad, grad_b_ND, rtol=1e-12, atol=0)
    assert za_ND.grad is None


def skip_without(impl: str, dtype: torch.dtype) -> None:
    try:
        choose(impl, "cuda", dtype)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["gram", "cuda", "triton"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("n", "d"), [(5, 5), (64, 512), (128, 64), (257, 1000)])
def test_a_gpu_agrees_with_fp64_on_the_cpu(n: int, d: int, dtype: torch.dtype, impl: str):
    skip_without(impl, dtype)
    views = embeddings(n, d, dtype)
    truth, *truth_grads = with_gradients(*(z_ND.double() for z_ND in views), impl="reference")
    terms, *grads = with_gradients(*(z_ND.cuda() for z_ND in views), impl=impl)
    assert terms.total.item() == pytest.approx(truth.total.item(), rel=TOLERANCE[dtype][0])
    for grad_ND, truth_ND in zip(grads, truth_grads, strict=True):
        assert relative_error(grad_ND.cpu(), truth_ND) < TOLERANCE[dtype][1]


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["gram", "cuda", "triton"])
@pytest.mark.parametrize(("n", "d"), [(64, 512), (128, 64)])
def test_a_cuda_graph_replays_the_loss(n: int, d: int, impl: str):
    skip_without(impl, torch.bfloat16)
    views = tuple(z_ND.cuda() for z_ND in embeddings(n, d, torch.bfloat16))
    static = tuple(torch.zeros_like(z_ND) for z_ND in views)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        with_gradients(*static, impl=impl)  # compiles what a capture must not
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        terms, *grads = with_gradients(*static, impl=impl)
    for z_ND, value_ND in zip(static, views, strict=True):
        z_ND.copy_(value_ND)
    graph.replay()
    expected, *expected_grads = with_gradients(*views, impl=impl)
    assert torch.equal(terms.total, expected.total)
    assert all(torch.equal(*pair) for pair in zip(grads, expected_grads, strict=True))
