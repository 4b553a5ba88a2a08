"""The norm's Triton passes in Triton's interpreter against fp64, and compiled ahead of time for an H100.

Run as a program it is the process that interprets.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from norm_problems import CASES, Case, disagreements, outcome, problem, truth
from toolchains import require_interpreter

pytest.importorskip("triton")
from fastvicreg.kernels import triton_host
from fastvicreg.kernels.norm import Options, batch_norm_act, fused, triton_impl, triton_kernels

NEAR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
HALVES = [case for case in CASES if case.shape in ((6, 7), (6, 160, 4, 4))]
BOTH = [(case, dtype) for dtype in NEAR for case in (CASES if dtype is torch.float32 else HALVES)]
LARGE = Case((6, 40, 31, 23), 2, added=True)
"""Several parts of several blocks, the last ones not full."""
RANKS_OF = Case((4, 20, 3, 3), 2)


def joined_by_hand() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Statistics of two processes' unequal shares merged, and those of all rows."""
    x = problem(Case((12, 20, 3, 3)), torch.float32).x
    views = x.chunk(2)
    shares = [torch.cat([view[rows] for view in views]) for rows in (slice(0, 4), slice(4, 6))]
    rows = [triton_impl.merged(triton_impl.statistics(share, 2), 2) for share in shares]
    options, c = Options(views=2), x.shape[1]
    found = triton_impl.finished(torch.stack(rows), options, (torch.zeros(c), torch.ones(c)))
    return list(found), list(triton_impl.finished(triton_impl.statistics(x, 2), options, None))


def interpret(file: Path) -> None:
    """All cases' results, by case."""
    found: dict[Any, Any] = {}
    for case, dtype in BOTH:
        found[case, dtype] = outcome(problem(case, dtype), case, impl="triton")
    found["large"] = outcome(problem(LARGE, torch.float32), LARGE, impl="triton")
    found["again"] = outcome(problem(LARGE, torch.float32), LARGE, impl="triton")
    found["offset"] = outcome(problem(LARGE, torch.float32, offset=100.0), LARGE, impl="triton")
    found["nchw"] = outcome(problem(LARGE, torch.float32, nhwc=False), LARGE, impl="triton")
    made = problem(RANKS_OF, torch.float32)
    made.x[1, 3, 2, 2] = float("nan")
    found["nan"] = outcome(made, RANKS_OF, impl="triton")
    found["ranks"] = joined_by_hand()

    def run(x: Any, residual: Any, weight_C: Any, bias_C: Any, running: Any, options: Any) -> torch.Tensor:
        return batch_norm_act(x, weight_C, bias_C, residual=residual, running=running, options=options, impl="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for added in (True, False):
        case = RANKS_OF._replace(added=added)
        found["compiled", added] = outcome(problem(case, torch.float32), case, compiled)
    torch.save(found, file)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What the interpreter finds: kernels are interpreted or compiled as of their import."""
    folder = tmp_path_factory.mktemp("triton")
    require_interpreter()
    file = folder / "found.pt"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, __file__, str(file)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    return torch.load(file, weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "dtype"), BOTH, ids=str)
def test_values_and_gradients_agree_with_fp64(interpreted: dict[Any, Any], case: Case, dtype: torch.dtype) -> None:
    found, made = interpreted[case, dtype], problem(case, dtype)
    assert (found[0].dtype, found[1].dtype, found[0].stride()) == (dtype, dtype, made.x.stride())
    assert disagreements(found, truth(made, case), NEAR[dtype]) == []


@pytest.mark.slow
def test_many_parts_and_unfilled_blocks(interpreted: dict[Any, Any]) -> None:
    assert triton_impl.parts_of(3 * 31 * 23, 40, 2)[0] > 32
    assert disagreements(interpreted["large"], truth(problem(LARGE, torch.float32), LARGE), 1e-5) == []
    assert disagreements(interpreted["nchw"], truth(problem(LARGE, torch.float32), LARGE), 1e-5) == []
    assert all(torch.equal(*pair) for pair in zip(interpreted["large"], interpreted["again"], strict=True))


@pytest.mark.slow
def test_a_large_common_offset_loses_no_digits(interpreted: dict[Any, Any]) -> None:
    wanted = truth(problem(LARGE, torch.float32, offset=100.0), LARGE)
    assert disagreements(interpreted["offset"], wanted, 3e-5) == []


@pytest.mark.slow
def test_a_nan_shows_in_its_view_s_channel_alone(interpreted: dict[Any, Any]) -> None:
    y = interpreted["nan"][0]
    assert torch.isnan(y[:2, 3]).all()
    assert torch.isfinite(y[2:]).all()
    assert torch.isfinite(y[:, :3]).all()


@pytest.mark.slow
def test_unequal_shares_of_two_processes_merge_to_the_whole(interpreted: dict[Any, Any]) -> None:
    for value, other in zip(*interpreted["ranks"], strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("added", [True, False])
def test_a_compiler_takes_it_whole(interpreted: dict[Any, Any], added: bool) -> None:
    case = RANKS_OF._replace(added=added)
    assert disagreements(interpreted["compiled", added], truth(problem(case, torch.float32), case), 1e-5) == []


WIDE = {"parts_SX", "row_X", "mean_VC", "scale_VC", "unbiased_VC", "count_1", "running_mean_C", "running_var_C"}
WIDE |= {"weight_C", "bias_C", "parts_SY", "sums_2VC", "sum_Y"}
LENGTHS = {"m", "c", "part", "parts", "width"}


def compiled(name: str, element: str, constants: dict[str, Any]) -> tuple[Any, str]:
    """The kernel for an H100 and what its machine code takes, at channels that are a multiple of 16."""
    from triton import compile, knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(triton_kernels, name)

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in LENGTHS:
            return "i32"
        return "fp32" if argument in ("momentum", "eps") else "*fp32" if argument in WIDE else f"*{element}"

    kinds = {argument: kind(argument) for argument in kernel.arg_names}
    aligned = [i for i, argument in enumerate(kinds) if kinds[argument][0] == "*" or argument == "c"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants, attrs=attributes)
    options = triton_host.OPTIONS | {"num_warps": triton_impl.WARPS}
    result = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    file = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    file.write_bytes(result.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
    return result, subprocess.run(command, capture_output=True, text=True, check=True).stdout


def variants() -> list[Any]:
    """Every kernel as it is launched for two views: (kernel, input's type, constants)."""
    tile = triton_impl.tiles(256)
    found: list[Any] = [("add", "fp32", {**triton_impl.SECOND})]
    for final in (True, False):
        found.append(("merge", "fp32", {"VIEWS": 2, "FINAL": final, "RUNNING": final, **triton_impl.SECOND}))
    for element in ("bf16", "fp32"):
        found.append(("statistics", element, {"VIEWS": 2, **tile}))
        found += [("sums", element, {"VIEWS": 2, "FROM_Y": y, "AGAIN": not y, **tile}) for y in (True, False)]
        steps = {"STEPS": triton_impl.STEPS, **tile}
        found += [("normalise", element, {"ADDED": added, "RELU": True, **steps}) for added in (True, False)]
        found += [("gradient", element, {"VIEWS": 2, "AGAIN": again, **steps}) for again in (True, False)]
    return found


@pytest.mark.parametrize(("name", "element", "constants"), variants())
def test_kernels_compile_for_an_h100_without_spills(
    name: str,
    element: str,
    constants: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    result, usage = compiled(name, element, constants)
    figures = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    record_property("registers", figures["REG"])
    assert figures["REG"] > 0
    assert figures["STACK"] == figures["LOCAL"] == 0
    assert not re.search(r"\b(atom|red)\.", result.asm["ptx"])  # a sum's order would change from run to run
    if name in ("normalise", "gradient", "statistics"):
        wide = "v4" if element != "fp32" else "v[24]"
        assert re.search(rf"ld\.global\S*\.{wide}\.b32", result.asm["ptx"])  # 16 bytes a thread


def test_the_passes_are_those_of_the_protocol() -> None:
    """Every pass has its counterpart in the other writing."""
    from fastvicreg.kernels.norm import torch_passes

    names = [name for name in vars(fused.Passes) if not name.startswith("_")]
    assert names == ["statistics", "merged", "finished", "normalised", "sums", "gradient"]
    assert all(callable(getattr(module, name)) for module in (triton_impl, torch_passes) for name in names)


if __name__ == "__main__":
    interpret(Path(sys.argv[1]))
