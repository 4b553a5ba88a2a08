"""The VICReg loss of a batch that lies among 2 and 4 processes, against the same batch in one.

Run as a program it is one of those processes. Shape suffixes: N samples of a rank's batch, M of the global batch,
D embedding width, F features before the embedding.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from simt import run_on_host
from toolchains import require_interpreter
from torch import Tensor, nn

from fastvicreg.contracts import ParamGroup, UserError
from fastvicreg.kernels.loss import LossTerms, cuda, ranks, vicreg_loss
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg

SIZES = {"N < D": (8, 13), "N = D": (8, 8), "N > D": (12, 5), "own N < D < N": (12, 9)}  # of the global batch
CASES = list(itertools.product(SIZES, ("official", "paper"), ("reference", "gram")))
FUSED_CASES = list(itertools.product(SIZES, ["cuda"] + ["triton"] * bool(find_spec("triton"))))
WEIGHTS: dict[str, Any] = {"invariance": 2.0, "variance": 30.0, "covariance": 4.0}
TIMEOUT = 120


class Features(nn.Identity):
    """An encoder whose images are features already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def param_groups(self) -> list[ParamGroup]:
        return []


def batch(m: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of two views, and the shared weight that makes embeddings to either side of the hinge of them."""
    generator = torch.Generator().manual_seed(m * d)
    a_MF, b_MF = (torch.randn(m, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    weight_FD = torch.randn(20, d, generator=generator, dtype=torch.float64) / 5 * torch.linspace(0.3, 1.7, d)
    return a_MF + 0.3, a_MF + 0.4 * b_MF - 1, weight_FD


def loss_and_gradients(
    a: Tensor, b: Tensor, weight_FD: Tensor, **options: Any
) -> tuple[LossTerms, Tensor, Tensor, Tensor]:
    """Terms, and the total's gradients with respect to both embeddings and to the weight."""
    weight_FD = weight_FD.clone().requires_grad_()
    za, zb = a @ weight_FD, b @ weight_FD
    terms = vicreg_loss(za, zb, **WEIGHTS, **options)
    grad_a, grad_b, grad_FD = torch.autograd.grad(terms.total, (za, zb, weight_FD))
    return LossTerms(*(term.detach() for term in terms)), grad_a, grad_b, grad_FD


def member(rank: int, size: int, folder: Path) -> None:
    """What one process finds: its results by case, how often it called the others, and what it was refused."""
    torch.set_num_threads(1)
    cuda.kernel = on_host
    cuda.obstacle = lambda device, dtype: ""
    cuda.shared_limit = lambda device: 0
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT)
    )
    group = dist.group.WORLD
    found: dict[Any, Any] = {}
    for kind, form, impl in CASES:
        m, d = SIZES[kind]
        a_MF, b_MF, weight_FD = batch(m, d)
        own = slice(rank * m // size, (rank + 1) * m // size)
        options = {"form": form, "impl": impl, "group": group}
        found[kind, form, impl] = loss_and_gradients(a_MF[own], b_MF[own], weight_FD, **options)

    for kind, impl in FUSED_CASES if size == 2 else ():
        a_MF, b_MF, weight_FD = (tensor.float() for tensor in batch(*SIZES[kind]))
        own = slice(rank * len(a_MF) // size, (rank + 1) * len(a_MF) // size)
        found[kind, impl] = loss_and_gradients(a_MF[own], b_MF[own], weight_FD, impl=impl, group=group)

    m, d = SIZES["N < D"]
    a_MF, b_MF, weight_FD = batch(m, d)
    own = slice(rank * m // size, (rank + 1) * m // size)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        views = [(z_MF[own] @ weight_FD).to(dtype).requires_grad_() for z_MF in (a_MF, b_MF)]
        terms = vicreg_loss(*views, **WEIGHTS, group=group)
        found[dtype] = terms.total.detach(), *torch.autograd.grad(terms.total, views)

    for kind in ("N < D", "N > D"):
        m, d = SIZES[kind]
        a_MF, b_MF, weight_FD = batch(m, d)
        own = slice(rank * m // size, (rank + 1) * m // size)
        za, zb = ((z_MF[own] @ weight_FD).requires_grad_() for z_MF in (a_MF, b_MF))
        with (
            mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce,
            mock.patch.object(ranks, "all_gather_into", wraps=ranks.all_gather_into) as gather,
        ):
            total = vicreg_loss(za, zb, group=group).total
            forward = gather.call_count, reduce.call_count
            torch.autograd.grad(total, (za, zb))
            found["calls", kind] = forward, (gather.call_count, reduce.call_count)

    a_MF, b_MF, weight_FD = (tensor.float() for tensor in batch(*SIZES["N < D"]))
    own = slice(rank * len(a_MF) // size, (rank + 1) * len(a_MF) // size)
    torch.manual_seed(0)
    method = VICReg(Features(20), VICRegConfig(expander=(16, 12)))
    terms = method.loss(method.embed((a_MF[own], b_MF[own])), None)
    za, zb = (method.expander(z_MF[own]) for z_MF in (a_MF, b_MF))
    found["method"] = terms, vicreg_loss(za, zb, group=group)

    def loss(za: Tensor, zb: Tensor) -> Tensor:
        return vicreg_loss(2 * za, zb, group=group).total

    za, zb = ((z_MF[own] @ weight_FD).requires_grad_() for z_MF in (a_MF, b_MF))
    calls = {"compiled": torch.compile(loss, fullgraph=True, backend="aot_eager"), "eager": loss}
    for name, call in calls.items():
        total = call(za, zb)
        found[name] = total.detach(), *torch.autograd.grad(total, (za, zb))

    rows = torch.randn(5 if rank == 0 else 4, 6)
    try:
        vicreg_loss(rows, rows, group=group)
    except UserError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def on_host(source: str, name: str, *, defines: Mapping[str, str | int], device: torch.device) -> Any:
    """In place of ``fastvicreg.kernels.cuda.kernel``: the same source on this processor."""

    def launch(grid: Any, block: Any, *arguments: Any, shared_bytes: int = 0) -> None:
        run_on_host(source, name, grid, block, arguments, shared_bytes=shared_bytes, defines=defines)

    return launch


@pytest.fixture(scope="module", params=[2, 4])
def members(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of so many processes found."""
    size, folder = request.param, tmp_path_factory.mktemp("ranks")
    require_interpreter()
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    commands = [[sys.executable, __file__, str(rank), str(size), str(folder)] for rank in range(size)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "form", "impl"), CASES)
def test_ranks_agree_with_one_process(members: list[dict[Any, Any]], kind: str, form: str, impl: str):
    truth, *truth_grads = loss_and_gradients(*batch(*SIZES[kind]), form=form, impl="reference")
    found = [results[kind, form, impl] for results in members]
    for terms, *_ in found:
        for name in LossTerms._fields:
            assert getattr(terms, name).item() == pytest.approx(getattr(truth, name).item(), rel=1e-12), name
    assert all(torch.equal(terms.total, found[0][0].total) for terms, *_ in found)
    averaged_FD = torch.stack([grads[2] for _, *grads in found]).mean(0)  # as DistributedDataParallel
    torch.testing.assert_close(averaged_FD, truth_grads[2], rtol=1e-12, atol=1e-12)
    for view in (0, 1):
        rows_MD = torch.cat([grads[view] for _, *grads in found]) / len(members)
        torch.testing.assert_close(rows_MD, truth_grads[view], rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("members", [2], indirect=True)
@pytest.mark.parametrize(("kind", "impl"), FUSED_CASES)
def test_the_gpus_passes_agree_with_one_process(members: list[dict[Any, Any]], kind: str, impl: str):
    truth, *truth_grads = loss_and_gradients(*batch(*SIZES[kind]), impl="reference")
    found = [results[kind, impl] for results in members]
    for terms, *_ in found:
        for name in LossTerms._fields:
            assert getattr(terms, name).item() == pytest.approx(getattr(truth, name).item(), rel=1e-6), name
    for view in (0, 1):
        rows_MD = torch.cat([grads[view] for _, *grads in found]).double() / len(members)
        assert (rows_MD - truth_grads[view]).norm() < 2e-6 * truth_grads[view].norm()


TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # of a gradient: its own type's rounding


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_lower_precision_is_that_of_one_process(members: list[dict[Any, Any]], dtype: torch.dtype):
    a_MF, b_MF, weight_FD = batch(*SIZES["N < D"])
    size = len(members)
    chunks = [[(rows @ weight_FD).to(dtype) for rows in z_MF.chunk(size)] for z_MF in (a_MF, b_MF)]
    views = [torch.cat(rows).requires_grad_() for rows in chunks]
    total = vicreg_loss(*views, **WEIGHTS, impl="gram").total
    for view, truth_MD in enumerate(torch.autograd.grad(total, views)):
        rows_MD = torch.cat([results[dtype][1 + view] for results in members])
        assert rows_MD.dtype == dtype
        assert (rows_MD.double() / size - truth_MD).norm() < TOLERANCE[dtype] * truth_MD.double().norm()
    for results in members:
        assert results[dtype][0].item() == pytest.approx(total.item(), rel=1e-6)


@pytest.mark.slow
def test_backward_calls_no_other_rank(members: list[dict[Any, Any]]):
    for results in members:
        # Both views' rows at once; then the squares of each rank's own rows of the Gram matrices.
        assert results["calls", "N < D"] == ((1, 1), (1, 1))
        # Means, invariance, and each view's covariance.
        assert results["calls", "N > D"] == ((0, 4), (0, 4))


@pytest.mark.slow
def test_the_method_s_terms_are_the_global_batch_s(members: list[dict[Any, Any]]):
    (first, _), *others = (results["method"] for results in members)
    for terms, loss in (results["method"] for results in members):
        assert torch.equal(terms.total, loss.total)
    for terms, _ in others:
        assert torch.equal(terms.total, first.total)
        assert not torch.equal(terms.parts["embedding_std"], first.parts["embedding_std"])  # a process's own


@pytest.mark.slow
def test_ranks_compile_the_loss_whole(members: list[dict[Any, Any]]):
    for results in members:
        for found, expected in zip(results["compiled"], results["eager"], strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_uneven_ranks_are_refused_on_every_rank(members: list[dict[Any, Any]]):
    for results in members:
        assert results["refused"].startswith("every rank needs as many embeddings of one kind, got (5, 6) of 32 bits")


def test_a_group_of_one_is_no_group(tmp_path: Path):
    a_MF, b_MF, weight_FD = batch(*SIZES["N < D"])
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        grouped = loss_and_gradients(a_MF, b_MF, weight_FD, group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    alone = loss_and_gradients(a_MF, b_MF, weight_FD)
    assert torch.equal(grouped[0].total, alone[0].total)
    assert all(torch.equal(*pair) for pair in zip(grouped[1:], alone[1:], strict=True))


if __name__ == "__main__":
    member(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
