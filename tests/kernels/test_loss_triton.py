"""The loss's Triton passes in Triton's interpreter against fp64, and compiled ahead of time for an H100.

Run as a program it is the process that interprets. Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toolchains import require_interpreter
from torch import Tensor

pytest.importorskip("triton")
from fastvicreg.contracts import UserError
from fastvicreg.kernels import triton_host
from fastvicreg.kernels.loss import LossTerms, choose, triton_impl, triton_kernels, vicreg_loss

SIZES = ((2, 1), (2, 7), (15, 16), (16, 16), (17, 16), (64, 512), (140, 33), (100, 300))
TOLERANCE = {torch.float32: (1e-6, 1e-6), torch.float16: (5e-4, 6e-4)}  # of the terms, of the gradient
CASES = list(itertools.product(SIZES, TOLERANCE, ("official", "paper")))
WEIGHTS: dict[str, Any] = {"invariance": 2.0, "variance": 30.0, "covariance": 4.0}
SPECIAL = {"collapsed": 0.0, "tiny": 1e-4, "huge": 3e3}
LOSS_SCALE = 2.0**16


def embeddings(n: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two correlated views off centre, whose columns lie well to either side of the hinge."""
    generator = torch.Generator().manual_seed(n * d)
    za_ND, noise_ND = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    za_ND = za_ND * torch.tensor([1.6, 0.4], dtype=torch.float64).repeat(d)[:d] + 0.5
    return za_ND.to(dtype), (za_ND + 0.4 * noise_ND - 1).to(dtype)


def with_gradients(za_ND: Tensor, zb_ND: Tensor, *, scale: float = 1.0, **options: Any) -> tuple[LossTerms, Any]:
    views = [z_ND.detach().requires_grad_() for z_ND in (za_ND, zb_ND)]
    terms = vicreg_loss(*views, **WEIGHTS, **options)
    grads = torch.autograd.grad(terms.total * scale, views)
    return LossTerms(*(term.detach() for term in terms)), grads


def interpret(file: Path) -> None:
    """All cases' results, by case."""
    found: dict[Any, Any] = {}
    for (n, d), dtype, form in CASES:
        found[n, d, dtype, form] = with_gradients(*embeddings(n, d, dtype), impl="triton", form=form)
    for (name, factor), size in itertools.product(SPECIAL.items(), ((9, 20), (20, 9))):
        views = (factor * z_ND for z_ND in embeddings(*size, torch.float16))
        found[name, size] = with_gradients(*views, impl="triton", scale=LOSS_SCALE if name == "tiny" else 1.0)
    for size in ((9, 20), (20, 9)):
        za_ND, zb_ND = embeddings(*size, torch.float16)
        za_ND[1, 2] = float("nan")
        found["nan", size] = with_gradients(za_ND, zb_ND, impl="triton")
        za_ND, zb_ND = (z_ND + 1000 for z_ND in embeddings(*size, torch.float32))
        found["offset", size] = with_gradients(za_ND, zb_ND, impl="triton")
    try:
        vicreg_loss(*embeddings(4, 5, torch.bfloat16), impl="triton")
    except UserError as error:
        found["bfloat16"] = str(error)
    torch.save(found, file)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What the interpreter finds: kernels are interpreted or compiled as of their import."""
    folder = tmp_path_factory.mktemp("triton")
    require_interpreter()
    file = folder / "found.pt"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        [sys.executable, __file__, str(file)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    return torch.load(file, weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dtype", "form"), CASES)
def test_terms_and_gradients_agree_with_fp64(
    interpreted: dict[Any, Any], size: tuple[int, int], dtype: torch.dtype, form: str
):
    views = (z_ND.double() for z_ND in embeddings(*size, dtype))
    truth, truth_grads = with_gradients(*views, impl="reference", form=form)
    terms, grads = interpreted[*size, dtype, form]
    assert terms.total.dtype == torch.float32
    for name in LossTerms._fields:
        found, expected = getattr(terms, name).item(), getattr(truth, name).item()
        assert found == pytest.approx(expected, rel=TOLERANCE[dtype][0], abs=TOLERANCE[dtype][0]), name
    for grad_ND, truth_ND in zip(grads, truth_grads, strict=True):
        assert grad_ND.dtype == dtype
        assert (grad_ND.double() - truth_ND).norm() < TOLERANCE[dtype][1] * truth_ND.norm()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(9, 20), (20, 9)])
@pytest.mark.parametrize("name", list(SPECIAL))
def test_collapsed_and_exploded_fp16_embeddings(interpreted: dict[Any, Any], name: str, size: tuple[int, int]):
    views = (SPECIAL[name] * z_ND for z_ND in embeddings(*size, torch.float16))
    scale = LOSS_SCALE if name == "tiny" else 1.0  # acts before the gradient is rounded to fp16
    truth, truth_grads = with_gradients(*(z_ND.double() for z_ND in views), impl="reference", scale=scale)
    terms, grads = interpreted[name, size]
    assert terms.total.item() == pytest.approx(truth.total.item(), rel=2e-3)
    for grad_ND, truth_ND in zip(grads, truth_grads, strict=True):
        # What the exploded embeddings' gradient exceeds is fp16 itself.
        representable = truth_ND.abs() < torch.finfo(torch.float16).max
        assert torch.isfinite(grad_ND[representable]).all()
        difference = (grad_ND.double() - truth_ND)[representable]
        assert difference.norm() <= 3e-3 * truth_ND[representable].norm()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(9, 20), (20, 9)])
def test_a_nan_shows_in_total_and_gradient(interpreted: dict[Any, Any], size: tuple[int, int]):
    terms, (grad_ND, _) = interpreted["nan", size]
    assert torch.isnan(terms.total)
    assert torch.isnan(grad_ND).any()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(9, 20), (20, 9)])
def test_a_common_offset_is_centred_away(interpreted: dict[Any, Any], size: tuple[int, int]):
    views = ((z_ND + 1000).double() for z_ND in embeddings(*size, torch.float32))
    truth, truth_grads = with_gradients(*views, impl="reference")
    terms, grads = interpreted["offset", size]
    assert terms.total.item() == pytest.approx(truth.total.item(), rel=1e-6)
    for grad_ND, truth_ND in zip(grads, truth_grads, strict=True):
        assert (grad_ND.double() - truth_ND).norm() < 1e-6 * truth_ND.norm()


@pytest.mark.slow
def test_bfloat16_is_refused_where_the_interpreter_gets_it_wrong(interpreted: dict[Any, Any]):
    assert interpreted["bfloat16"].endswith("multiplies float32 and float16 alone, not bfloat16; choose auto or gram.")


def test_embeddings_on_a_cpu_are_refused_in_one_line():
    choose.cache_clear()
    with pytest.raises(UserError, match=r"^the loss kernel 'triton' cannot run here: it needs.* CUDA.* cpu; ch"):
        vicreg_loss(*embeddings(4, 6, torch.float32), impl="triton")


FP32_POINTERS = {"mean_2D", "power_2D", "distance_S", "trace_2", "diagonal_2P", "squares_2S", "slope_2D", "total"}
FP32_POINTERS |= {"invariance", "variance", "covariance", "scale", "diagonal_P", "slope_D", "trace"}
EMBEDDINGS = {"za", "zb", "x_2MD", "product_2PQ", "z_ND", "other_ND", "x_MD", "product_PQ", "grad_ND"}
LENGTHS = {"m", "n", "d", "p", "q", "length", "stride_i", "stride_k", "view_stride", "first_row"}
LENGTHS |= {"squares_count", "distance_count"}


def compiled(kernel: Any, element: str, constants: dict[str, Any], warps: int, stages: int) -> tuple[Any, str]:
    """The kernel for an H100 and what its machine code takes, as at N and D that are multiples of 16."""
    from triton import compile, knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in EMBEDDINGS:
            return f"*{'fp32' if constants.get('RAW') and name == 'product_2PQ' else element}"
        return "*fp32" if name in FP32_POINTERS else "i32" if name in LENGTHS else "fp32"

    kinds = {name: kind(name) for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(kinds) if name != "trace" and (kinds[name][0] == "*" or name in LENGTHS)]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned if kinds[kernel.arg_names[i]] != "constexpr"}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants, attrs=attributes)
    options = triton_host.OPTIONS | {"num_warps": warps, "num_stages": stages}
    result = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    file = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    file.write_bytes(result.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
    return result, subprocess.run(command, capture_output=True, text=True, check=True).stdout


def variants() -> list[Any]:
    """Every kernel as it is launched: (kernel, embeddings' type, constants, warps, stages)."""
    found: list[Any] = [
        pytest.param("terms", "fp32", {"GRAM": gram, "BLOCK": triton_impl.BLOCK}, 8, 3, id=f"terms-{gram}")
        for gram in (True, False)
    ]
    kinds = (("bf16", "ieee"), ("fp16", "ieee"), ("fp32", "tf32"), ("fp32", "ieee"))
    for (element, precision), gram in itertools.product(kinds, (True, False)):
        common, half = {"GRAM": gram, "PRECISION": precision}, element != "fp32"
        if precision == "ieee":
            constants = {"GIVEN": not gram, **triton_impl.STRIP}
            found.append(pytest.param("statistics", element, constants, 4, 3, id=f"statistics-{element}-{not gram}"))
        for rows in (256, 2048) if half else (2048,):
            tiles = triton_impl.matrix_tiles(rows, half)
            own = {"TRIANGLE": True, "RAW": False, "HALF": half, "TILE": tiles.i, "DEPTH": tiles.depth}
            own["stride_k" if gram else "stride_i"] = 1
            name = f"{element}-{precision}-{gram}-{rows}"
            found.append(pytest.param("matrix", element, common | own, tiles.warps, tiles.stages, id=f"matrix-{name}"))
            among_ranks = common | own | ({"TRIANGLE": False} if gram else {"RAW": True})
            if element == "bf16" and rows == 2048:
                constants = (among_ranks, tiles.warps, tiles.stages)
                found.append(pytest.param("matrix", element, *constants, id=f"matrix-ranks-{name}"))
            tiles = triton_impl.gradient_tiles(rows, half)
            own = {"HALF": half, "TILE_I": tiles.i, "TILE_J": tiles.j, "DEPTH": tiles.depth, "GROUP": triton_impl.GROUP}
            constants = (common | own, tiles.warps, tiles.stages)
            found.append(pytest.param("gradient", element, *constants, id=f"gradient-{name}"))
    return found


@pytest.mark.parametrize(("name", "element", "constants", "warps", "stages"), variants())
def test_kernels_compile_for_an_h100_without_spills(
    name: str,
    element: str,
    constants: dict[str, Any],
    warps: int,
    stages: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    result, usage = compiled(getattr(triton_kernels, name), element, constants, warps, stages)
    figures = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    record_property("registers", figures["REG"])
    assert figures["REG"] > 0
    assert figures["STACK"] == figures["LOCAL"] == 0
    assert result.metadata.shared <= 227 << 10
    if name in ("matrix", "gradient") and element != "fp32":
        assert "wgmma.mma_async" in result.asm["ptx"]  # Hopper's own matrix instruction
    assert not re.search(r"\b(atom|red)\.", result.asm["ptx"])  # a sum's order would change from run to run


if __name__ == "__main__":
    interpret(Path(sys.argv[1]))
