"""The variance and covariance terms beside other methods' losses: their values, their traps, and where they apply."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods import METHOD_CONFIGS, batch_of, built, encoder
from runs import log, tiny, train
from torch import Tensor
from vectors import embeddings

from fastvicreg.cli import main
from fastvicreg.contracts import Terms
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.methods import METHODS, notes_of
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.regularize import regularized
from fastvicreg.methods.settings import Regularized
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.simsiam.method import SimSiam
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.updater import Updater

OTHERS = {name: config for name, config in METHOD_CONFIGS.items() if isinstance(config, Regularized)}


def terms(config: Regularized, za: Tensor, zb: Tensor) -> Terms:
    return regularized(Terms(za.new_zeros(()), {}), config, za, zb)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("form", "hinge"), [("raw", 0.5117457520), ("normalized", 0.0157517397)])
def test_the_hinge_has_the_reference_value(form: Any, hinge: float) -> None:
    """Both views' hinges summed; gamma 1, eps 1e-4."""
    za, zb = (z.detach() for z in embeddings())
    found = terms(Regularized(variance=3.0, regularize=form), za, zb)
    assert float(found.parts["variance"]) == pytest.approx(hinge, abs=1e-9)
    assert float(found.total) == pytest.approx(3 * hinge, abs=1e-8)


@pytest.mark.parametrize("form", ["raw", "normalized"])
def test_values_and_gradients_are_the_kernel_s_on_what_is_seen(form: Any) -> None:
    za, zb = noise(9, 5).requires_grad_(), noise(9, 5, seed=1).requires_grad_()
    found = terms(Regularized(variance=2.0, covariance=0.3, regularize=form), za, zb)
    seen = (za, zb) if form == "raw" else (5**0.5 * F.normalize(z, dim=1) for z in (za, zb))
    wanted = vicreg_loss(*seen, invariance=0, variance=2.0, covariance=0.3, form="paper", impl="reference")
    torch.testing.assert_close(found.total, wanted.total)
    gradients = torch.autograd.grad(found.total, (za, zb)), torch.autograd.grad(wanted.total, (za, zb))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other)
    assert found.parts.keys() == {"variance", "covariance", "projection_rank"}


def test_the_rank_is_that_of_the_covariance() -> None:
    line = noise(200, 1) @ noise(1, 6, seed=1)
    even = torch.linalg.qr(noise(200, 6) - noise(200, 6).mean(0))[0]
    for z, rank in ((line, 1.0), (even, 6.0)):
        found = terms(Regularized(variance=1.0, regularize="raw"), z, 2 * z)
        assert float(found.parts["projection_rank"]) == pytest.approx(rank, abs=1e-6)


def test_every_method_but_vicreg_and_vicregl_takes_them() -> None:
    assert set(OTHERS) == set(METHODS) - {"vicreg", "vicregl"}


@pytest.mark.parametrize("name", OTHERS)
def test_they_are_of_both_projections_and_never_of_the_prediction(name: str) -> None:
    """Gradients of the added terms reach the projector and the encoder, and no predictor or prototype."""
    views = batch_of(16).views
    plain = built(OTHERS[name])
    method = built(replace(OTHERS[name], variance=2.0, covariance=0.5))
    embedded = method.embed(views)
    targets = method.target(views)
    more, less = method.loss(embedded, targets), plain.loss(embedded, targets)
    added = more.total - less.total
    assert float(added.detach()) > 0
    named = dict(method.named_parameters())
    found = torch.autograd.grad(added, [p for p in named.values() if p.requires_grad], allow_unused=True)
    scale = max(float(g.abs().max()) for g in found if g is not None)
    trained = [key for key, p in named.items() if p.requires_grad]
    for key, gradient in zip(trained, found, strict=True):
        if key.startswith(("predictor", "prototypes")):
            assert gradient is None or float(gradient.abs().max()) < 1e-5 * scale, key
    reached = {key.partition(".")[0] for key, g in zip(trained, found, strict=True) if g is not None and g.any()}
    assert reached >= {"encoder", "projector"}
    assert {c.name for c in method.columns} - {c.name for c in plain.columns} == more.parts.keys() - less.parts.keys()
    assert more.parts.keys() - less.parts.keys() == {"variance", "covariance", "projection_rank"}


def simsiam(**settings: Any) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(encoder(), SimSiamConfig(projector=(32, 32, 16), predictor_hidden=(8,), **settings))


def test_trap_a_raw_hinge_behind_simsiam_s_output_norm_is_nothing_and_is_named() -> None:
    """Batch norm's output has the standard deviation sqrt(N / (N - 1)), above gamma, until its input's reaches eps."""
    config = SimSiamConfig(projector=(32, 32, 16), predictor_hidden=(8,), variance=1.0, regularize="raw")
    found = {}
    for form, shrunk in (("raw", 1.0), ("raw", 1e-3), ("normalized", 1.0)):
        method = simsiam(variance=1.0, regularize=form)
        with torch.no_grad():
            method.get_parameter("projector.6.weight").mul_(shrunk)
        found[form, shrunk] = float(method.loss(method.embed(batch_of(16).views), None).parts["variance"])
    assert found["raw", 1.0] == 0.0
    assert found["raw", 1e-3] > 0.0
    assert found["normalized", 1.0] > 0.0
    (note,) = notes_of(config)
    assert note.startswith("--variance 1 --regularize raw does nothing here")
    assert notes_of(replace(config, regularize="normalized")) == ()
    (other,) = notes_of(replace(config, batch_norm=False))
    assert "at rank 1" in other


@pytest.mark.parametrize("width", [64, 2048, 16384])
def test_trap_b_the_normalised_hinge_is_alive_at_collapse_however_wide(width: int) -> None:
    """Of unit vectors as they are, gamma 1/sqrt(D) and eps 1e-4 leave no hinge at full collapse from D = 10,000 on."""
    z = 1 + 1e-4 * noise(32, width)
    unit = F.normalize(z, dim=1)
    as_they_are = vicreg_loss(unit, unit, invariance=0, form="paper", gamma=width**-0.5, impl="gram")
    assert (float(as_they_are.variance) == 0) == (width > 10_000)
    z.requires_grad_()
    found = terms(Regularized(variance=1.0), z, z)
    assert float(found.parts["variance"]) == pytest.approx(2 * 0.99, abs=1e-3)
    found.total.backward()
    assert z.grad is not None
    assert bool(z.grad.any())


@pytest.mark.slow
def test_trap_c_on_a_loss_blind_to_length_the_raw_hinge_leaves_rank_1_and_the_normalised_does_not() -> None:
    """SimSiam without predictor and batch norm (Table 4's last SimSiam row), on heads alone."""
    last = {}
    for form, covariance in (("raw", 0.0), ("normalized", 0.0), ("normalized", 0.5)):
        method = simsiam(predictor=False, batch_norm=False, variance=1.0, covariance=covariance, regularize=form)
        step = EagerStep(method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0, momentum=0.9)))
        found = [step(batch_of(16), {"lr": 0.03}) for _ in range(40)][-1]
        last[form, covariance] = {key: float(value) for key, value in found.parts.items()}
    raw, normalized, both = last.values()
    assert raw["projection_rank"] < 1.5
    assert normalized["projection_std"] > 0.8 * 16**-0.5
    assert both["projection_rank"] > 3 * raw["projection_rank"]
    assert normalized["projection_rank"] > raw["projection_rank"]


def test_without_it_the_same_network_collapses_and_the_watch_s_line_names_the_flag() -> None:
    method = simsiam(predictor=False, batch_norm=False)
    step = EagerStep(method, Updater(method, torch.optim.SGD(method.parameters(), lr=0.0, momentum=0.9)))
    found = [step(batch_of(16), {"lr": 0.1}) for _ in range(40)][-1]
    assert float(found.parts[method.spread.part]) < 0.05 * method.spread.healthy
    assert method.spread.cause == "--no-predictor leaves nothing against it: --variance 1 does without one"


def test_a_run_shows_and_logs_them(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = uninterrupted
    config = BYOLConfig(projector=(32, 16), predictor_hidden=(32,), variance=1.0, covariance=0.01)
    train(replace(tiny(data, steps=4), method=config), tmp_path / "run")
    row = next(row for row in log(tmp_path / "run") if "total" in row)
    assert row["total"] == pytest.approx(row["prediction"] + row["variance"] + 0.01 * row["covariance"], rel=1e-5)
    assert " rank " in (tmp_path / "display.txt").read_text()


@pytest.mark.parametrize(
    "row",
    [
        "--method byol",
        "--method simsiam",
        "--method simsiam --no-batch-norm",
        "--method simsiam --no-batch-norm --no-predictor",
        "--method vicreg --predictor --no-batch-norm",
        "--method vicreg --predictor",
        "--method vicreg",
        "--method vicreg --no-batch-norm",
    ],
)
@pytest.mark.parametrize("weights", ["0 0", "1 0", "1 .01"])
def test_each_of_table_4_s_rows_is_a_command(row: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    variance, covariance = weights.split()
    arguments = ["train", *row.split(), "--variance", variance, "--covariance", covariance, "--print-config"]
    assert main(arguments) == 0
    assert f'"variance": {float(variance)}' in capsys.readouterr().out


def test_heads_of_one_dimension_have_no_covariance(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--method", "byol", "--projector", "8", "1", "--covariance", ".01"]) == 2
    assert "--projector 8 1 has a layer below 2" in capsys.readouterr().err
