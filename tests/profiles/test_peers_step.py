"""Steps of other libraries' parts: the same work as ours, measured where they are installed, else named."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import tiny
from torch import nn

from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.profiles.bench import peers_step
from fastvicreg.profiles.bench import step as bench_step
from fastvicreg.profiles.bench.step_variants import OFFICIAL, cases

WIDTHS = (24, 24, 32)
FACTORS = {"lightly": 1.0, "solo": 2.0}
"""What their variance term is, in ours: solo-learn does not halve the two views' hinges."""


def step_of(name: str) -> tuple[peers_step.PeerStep, bench_step.Subject]:
    """Its step and our official one."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    config = replace(tiny(Path("unused")), method=VICRegConfig(expander=WIDTHS))
    case = cases("cpu")[OFFICIAL]
    with torch.random.fork_rng():
        return (
            bench_step.build_peer(config, replace(case, peer=name), "cpu", 8),
            bench_step.build_case(config, case, "cpu", 8),
        )


@pytest.mark.peers
@pytest.mark.parametrize("name", FACTORS)
def test_a_peers_step_is_ours_in_other_parts(name: str) -> None:
    step, ours = step_of(name)
    projector, expander = step.projector, ours.step.method.get_submodule("expander")  # type: ignore[attr-defined]
    linears = [[one for one in head.modules() if isinstance(one, nn.Linear)] for head in (projector, expander)]
    assert [one.weight.shape for one in linears[0]] == [one.weight.shape for one in linears[1]]
    assert len([one for one in projector.modules() if isinstance(one, nn.BatchNorm1d)]) == len(WIDTHS) - 1
    z_a, z_b = (projector(step.encoder(view)) for view in step.views)
    terms = vicreg_loss(z_a, z_b, variance=25.0 * FACTORS[name], impl="reference")
    torch.testing.assert_close(step.loss(), terms.total, rtol=1e-5, atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("name", FACTORS)
def test_a_peers_step_learns(name: str) -> None:
    step, _ = step_of(name)
    for group in step.parts.optimizer.param_groups:
        group["lr"] = 0.3
    before = step.loss().item()
    for _ in range(5):
        step()
    assert step.loss().item() < before


@pytest.mark.peers
def test_peers_are_rows_beside_ours() -> None:
    for name in FACTORS:
        step_of(name)
    with torch.random.fork_rng():
        rows = bench_step.run(batch=8, size=16, repeats=2, only=("eager",), against=("lightly", "solo"))
    assert [row["variant"] for row in rows] == ["lightly", "solo", "eager"]
    assert rows[0]["note"] == "lightly 1.6.0"
    assert rows[1]["note"] == "solo-learn 1.0.2"
    assert rows[0]["ratio"] == 1.0
    assert all(row["ms"] > 0 for row in rows)


def test_a_peer_that_is_not_installed_costs_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> peers_step.Parts:
        return peers_step.imported("lightly", "lightly_that_nobody_has")  # type: ignore[return-value]

    monkeypatch.setitem(peers_step.PEERS, "lightly", missing)
    with torch.random.fork_rng():
        rows = bench_step.run(batch=4, size=16, repeats=2, only=("eager",), against=("lightly", "official"))
    assert [row["variant"] for row in rows] == ["lightly", "official", "eager"]
    assert "lightly does not import here" in rows[0]["note"]
    assert "pip install lightly" in rows[0]["note"]
    assert "ms" not in rows[0]
    assert rows[1]["ratio"] == 1.0


@pytest.mark.skipif(find_spec("solo") is not None, reason="solo-learn is installed")
def test_what_is_missing_of_a_package_says_how_to_get_it() -> None:
    with pytest.raises(UserError, match="solo-learn is not installed here: pip install --no-deps solo-learn"):
        peers_step.solo_parts(nn.Identity(), 4, WIDTHS)


def test_widths_that_a_peers_projector_cannot_have_are_named() -> None:
    with pytest.raises(UserError, match="hidden layers of one width, not 16 24 32"):
        peers_step.two_widths("lightly", (16, 24, 32))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--against", "lightyl"], "--against 'lightyl' is no step of others: choose from official, lightly, solo"),
        (["--against", "solo", "--preset", "byol-imagenet-100ep"], "--preset byol-imagenet-100ep does not"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
