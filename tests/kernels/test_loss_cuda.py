"""The loss's CUDA passes run on the host, their launches as on a device, against fp64; and compiled for each GPU.

Shape suffixes: N samples of the batch, M those given to a pass, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from nvrtc import require_compiler
from simt import run_on_host
from toolchains import assert_no_spills
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastvicreg.contracts import UserError
from fastvicreg.kernels.cuda import ARCHITECTURES, compile_cubin
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.kernels.loss import LossTerms, choose, cuda, vicreg_loss
from fastvicreg.kernels.loss.operators import Weights, vicreg_operator
from fastvicreg.kernels.loss.ranks import Ranks

SIZES = ((3, 1), (2, 9), (15, 16), (16, 16), (17, 16), (33, 65), (64, 200), (130, 40))
TOLERANCE = {  # of the terms and of the gradient, both relative to fp64 on the embeddings as rounded
    torch.float32: (2e-6, 2e-6),
    torch.bfloat16: (3e-3, 5e-3),
    torch.float16: (4e-4, 7e-4),
}
WEIGHTS: dict[str, Any] = {"invariance": 2.0, "variance": 30.0, "covariance": 4.0}


def embeddings(n: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two correlated views off centre, whose columns lie well to either side of the hinge."""
    generator = torch.Generator().manual_seed(n * d)
    za_ND, noise_ND = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    za_ND = za_ND * torch.tensor([1.6, 0.4], dtype=torch.float64).repeat(d)[:d] + 0.5
    return za_ND.to(dtype), (za_ND + 0.4 * noise_ND - 1).to(dtype)


def with_gradients(
    za_ND: Tensor, zb_ND: Tensor, *, scale: float = 1.0, **options: Any
) -> tuple[LossTerms, list[Tensor]]:
    views = [z_ND.detach().requires_grad_() for z_ND in (za_ND, zb_ND)]
    terms = vicreg_loss(*views, **WEIGHTS, **options)
    return terms, list(torch.autograd.grad(terms.total * scale, views))


def in_fp64(za_ND: Tensor, zb_ND: Tensor, **options: Any) -> tuple[LossTerms, list[Tensor]]:
    return with_gradients(za_ND.double(), zb_ND.double(), impl="reference", **options)


@pytest.fixture
def on_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Launches go to the host; yields the names of the kernels launched."""
    launched: list[str] = []

    def kernel(
        source: str, name: str, *, defines: Mapping[str, str | int], device: torch.device
    ) -> Callable[..., None]:
        def launch(grid: Any, block: Any, *arguments: Any, shared_bytes: int = 0) -> None:
            launched.append(name)
            run_on_host(source, name, grid, block, arguments, shared_bytes=shared_bytes, defines=defines, seed=3)

        return launch

    monkeypatch.setattr(cuda, "kernel", kernel)
    monkeypatch.setattr(cuda, "shared_limit", lambda device: getattr(request, "param", 227 << 10))
    monkeypatch.setattr(cuda, "obstacle", lambda device, dtype: "")
    choose.cache_clear()
    yield launched
    choose.cache_clear()


@pytest.mark.parametrize("on_host", [227 << 10, 0], ids=["held", "read twice"], indirect=True)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_terms_and_gradients_agree_with_fp64(on_host: list[str], n: int, d: int, dtype: torch.dtype):
    views = embeddings(n, d, dtype)
    for form in ("official", "paper"):
        truth, truth_grads = in_fp64(*views, form=form)
        terms, grads = with_gradients(*views, impl="cuda", form=form)
        assert terms.total.dtype == torch.float32
        for name in LossTerms._fields:
            found, expected = getattr(terms, name).item(), getattr(truth, name).item()
            assert found == pytest.approx(expected, rel=TOLERANCE[dtype][0], abs=TOLERANCE[dtype][0]), name
        for grad_ND, truth_ND in zip(grads, truth_grads, strict=True):
            assert grad_ND.dtype == dtype
            assert (grad_ND.double() - truth_ND).norm() < TOLERANCE[dtype][1] * truth_ND.norm()
    assert on_host == ["statistics", "squares", "terms", "gradient"] * 2


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("given", [False, True])
def test_statistics_are_of_the_rounded_operand(on_host: list[str], given: bool, offset: int):
    za_MD, zb_MD = (z_MD + offset for z_MD in embeddings(70, 24, torch.float32))
    mean_2D = torch.stack((za_MD, zb_MD)).double().mean(1)
    x_2MD, power_2D, distance_S = cuda.statistics(za_MD, zb_MD, mean_2D.float() if given else None)
    centred_2MD = torch.stack((za_MD, zb_MD)).double() - mean_2D[:, None]
    tolerance = 1e-6 if offset == 0 or not given else 1e-4  # a mean near 1000 has fewer digits behind the point
    torch.testing.assert_close(x_2MD.double(), centred_2MD, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(power_2D, x_2MD.double().square().sum(1).float())
    torch.testing.assert_close(distance_S.sum(), (za_MD - zb_MD).square().sum())


def test_a_run_repeats_bit_for_bit_in_any_order_of_threads(monkeypatch: pytest.MonkeyPatch):
    za_MD, zb_MD = embeddings(300, 40, torch.bfloat16)
    found = []
    for seed in (1, 2):
        x_2MD, power_2D, distance_S = torch.empty(2, 300, 40).bfloat16(), torch.empty(2, 40), torch.empty(3)
        arguments = (za_MD, zb_MD, None, x_2MD, power_2D, distance_S, np.int64(300), np.int64(40))
        defines = {"THREADS": 256, "COLUMNS": 16, "OPERAND": 1, "VEC": 8, "HELD": 0}
        run_on_host("loss/stats.cu", "statistics", 3, 256, arguments, defines=defines, seed=seed)
        found.append((x_2MD, power_2D, distance_S))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 12)])
def test_a_loss_scale_acts_before_gradients_are_rounded_to_fp16(on_host: list[str], n: int, d: int):
    views = tuple(0.001 * z_ND for z_ND in embeddings(n, d, torch.float16))
    _, truth_grads = in_fp64(*views, scale=2.0**16)
    _, grads = with_gradients(*views, impl="cuda", scale=2.0**16)
    for grad_ND, truth_ND in zip(grads, truth_grads, strict=True):
        assert (grad_ND.double() - truth_ND).norm() < 2e-3 * truth_ND.norm()


@pytest.mark.parametrize("factor", [0.0, 1e-18, 1e4])
@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_collapsed_and_exploded_embeddings(on_host: list[str], dtype: torch.dtype, n: int, d: int, factor: float):
    views = tuple(factor * z_ND for z_ND in embeddings(n, d, dtype))
    truth, truth_grads = in_fp64(*views)
    terms, grads = with_gradients(*views, impl="cuda")
    assert terms.total.item() == pytest.approx(truth.total.item(), rel=1e-2)
    for grad_ND, truth_ND in zip(grads, truth_grads, strict=True):
        assert torch.isfinite(grad_ND).all()
        assert (grad_ND.double() - truth_ND).norm() <= 1e-2 * truth_ND.norm()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)])
def test_a_non_finite_embedding_shows_in_total_and_gradient(on_host: list[str], n: int, d: int, poison: float):
    za_ND, zb_ND = embeddings(n, d, torch.float16)
    za_ND[1, 2] = poison
    terms, grads = with_gradients(za_ND, zb_ND, impl="cuda")
    assert not torch.isfinite(terms.total)
    assert not torch.isfinite(grads[0]).all()


def test_a_single_gradient_and_strided_embeddings(on_host: list[str]):
    za_ND, zb_ND = embeddings(12, 20, torch.float32)
    _, truth_grads = in_fp64(za_ND, zb_ND)
    leaf_ND = torch.stack((zb_ND, zb_ND), dim=2)[:, :, 1].requires_grad_()
    total = vicreg_loss(za_ND.T.contiguous().T, leaf_ND, impl="cuda", **WEIGHTS).total
    (grad_ND,) = torch.autograd.grad(total, leaf_ND)
    torch.testing.assert_close(grad_ND.double(), truth_grads[1], rtol=1e-4, atol=1e-6)
    assert on_host.count("gradient") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)])
def test_the_operator_is_what_it_declares(on_host: list[str], n: int, d: int, dtype: torch.dtype):
    views = tuple(z_ND.requires_grad_() for z_ND in embeddings(n, d, dtype))
    weights = [25.0, 25.0, 1.0, 0.5, 1.0, 1e-4]
    torch.library.opcheck(vicreg_operator, (*views, weights, KERNELS["loss"].implementations["cuda"].target, ""))


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.nbytes = max(self.nbytes, tensor.nbytes)
        return result


def test_nothing_of_the_covariance_s_size_is_formed_where_n_is_the_smaller(on_host: list[str]):
    n, d = 8, 400
    views = embeddings(n, d, torch.bfloat16)
    weights = Weights(25.0, 25.0, 1.0, 0.5, 1.0, 1e-4)
    with LargestTensor() as largest:
        (total, *_), kept = cuda.forward(*views, weights, Ranks())
        cuda.backward(torch.ones_like(total), *views, kept, weights, Ranks(), (True, True))
    assert 2 * n * d * 2 <= largest.nbytes < d * d * 2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_compiles_without_spills(arch: str):
    require_compiler()
    cubins = [compile_cubin(source, arch, defines=defines) for source, defines in cuda.variants()]
    found = {name for cubin in cubins for name in cubin.usage}
    assert found == {"statistics", "squares", "terms", "gradient"}
    for cubin in cubins:
        for name, usage in cubin.usage.items():
            assert_no_spills(usage, name)
            assert usage.shared_bytes <= cuda.STATIC_SHARED_BYTES


def test_what_cannot_run_here_is_refused_in_one_line():
    choose.cache_clear()
    views = embeddings(4, 6, torch.float32)
    with pytest.raises(UserError, match=r"^the loss kernel 'cuda' cannot run here: it needs tensors on a CUDA"):
        vicreg_loss(*views, impl="cuda")
    with pytest.raises(UserError, match="takes float32, bfloat16 and float16 embeddings, not float64"):
        vicreg_loss(*(z_ND.double() for z_ND in views), impl="cuda")
