"""Each side's deviation and rank, logged without a wait, and what is told where a side collapses or lies on a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import BRANCHED_CONFIGS, METHOD_CONFIGS, batch_for, built
from rich.console import Console
from runs import tiny, train
from stepping import batches, double, vicreg
from torch import Tensor
from waits import Waits

from fastvicreg.contracts import SIDE_ROWS, Cursor, Spread
from fastvicreg.evaluate.diagnostics import rank_me
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import read_spread
from fastvicreg.show.spread import SpreadLog
from fastvicreg.show.watch import COLLAPSED, PATIENCE, CollapseWatch
from fastvicreg.train.steps.compiled.step import CompiledStep
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.steps.graphed.step import EAGER_STEPS, GraphedStep
from fastvicreg.train.trainer import Trainer
from fastvicreg.train.updater import Updater


class Sides:
    """As much of a method as the log takes."""

    def __init__(self, sides: Mapping[str, Tensor], spread: Spread) -> None:
        self.sides, self.spread = sides, spread


def row_of(spread: Spread, **sides: Tensor) -> dict[str, Any]:
    log = SpreadLog(Sides(sides, spread))  # pyright: ignore[reportArgumentType]
    log.take(30, Cursor(2, 5))
    (row,) = log.rows()
    return row


def noise(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize(("rows", "width"), [(32, 8), (8, 32)])
def test_a_row_has_each_side_s_deviation_and_rank(rows: int, width: int) -> None:
    one, other = noise(rows, width), noise(rows, 1) @ noise(1, width)
    row = row_of(Spread("part", width**-0.5, ""), a=one, b=other)
    assert (row["epoch"], row["step"], row["rank_most"]) == (2, 30, min(rows, width))
    assert row["rank_a"] == pytest.approx(rank_me(one), rel=1e-4)
    assert row["rank_b"] == pytest.approx(1, abs=1e-3)
    unit = torch.nn.functional.normalize(one, dim=1)
    assert row["std_a"] == pytest.approx(float(unit.std(0).mean()) * math.sqrt(width))
    raw = row_of(Spread("part", 0.5, "", raw=True), a=one)
    assert raw["std_a"] == pytest.approx(float(one.std(0).mean()) / 0.5)


def test_a_step_that_did_not_count_and_a_method_without_sides_leave_no_row() -> None:
    log = SpreadLog(Sides({"a": torch.full((4, 2), torch.nan)}, Spread("part", 1, "")))  # pyright: ignore[reportArgumentType]
    log.take(1, Cursor(0, 0))
    assert log.rows() == []
    without = SpreadLog(Sides({}, Spread("part", 1, "")))  # pyright: ignore[reportArgumentType]
    without.take(1, Cursor(0, 0))
    assert without.rows() == []


def test_sides_are_taken_without_a_wait() -> None:
    log = SpreadLog(Sides({"a": noise(8, 4)}, Spread("part", 1, "")))  # pyright: ignore[reportArgumentType]
    with Waits() as waits:
        log.take(1, Cursor(0, 0))
    assert not waits.found
    with Waits() as waits:  # negative control
        log.rows()
    assert waits.found


FOLLOWED = "byol", "moco", "dino", "simsiam followed"
CONFIGS = METHOD_CONFIGS | BRANCHED_CONFIGS
CONFIGS["simsiam followed"] = replace(METHOD_CONFIGS["simsiam"], momentum_encoder=True)  # type: ignore[type-var]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_keeps_its_last_loss_s_sides(name: str) -> None:
    method = built(CONFIGS[name])
    assert not method.sides
    seen = []
    for shift in (0.0, 1.0):
        batch = batch_for(method, 8)
        views = replace(batch, views=tuple(view + shift for view in batch.views)).inputs
        method.loss(method.embed(views), method.target(views))
        seen.append(method.sides)
    assert [*seen[0]] == (["online", "target"] if name in FOLLOWED else ["a", "b"])
    for side, z_RD in seen[0].items():
        assert len(z_RD) == 8
        assert not z_RD.requires_grad
        assert not torch.equal(z_RD, seen[1][side])


def test_no_more_rows_are_kept_than_are_looked_at() -> None:
    method = vicreg()
    views = (torch.randn(SIDE_ROWS + 4, 3, 8, 8), torch.randn(SIDE_ROWS + 4, 3, 8, 8))
    embeddings = method.embed(views)
    method.loss(embeddings, None)
    assert len(method.sides["a"]) == SIDE_ROWS
    assert torch.equal(method.sides["a"], embeddings.views_BD[0][:SIDE_ROWS])
    assert method.sides["a"].untyped_storage().nbytes() < embeddings.views_BD[0].untyped_storage().nbytes()


def test_a_compiled_step_keeps_the_eager_one_s_sides() -> None:
    eager, compiled = (vicreg().double() for _ in range(2))
    steps = (
        EagerStep(eager, Updater(eager, torch.optim.SGD(eager.parameters(), lr=0.0))),
        CompiledStep(
            compiled, Updater(compiled, torch.optim.SGD(compiled.parameters(), lr=0.0)), backend="aot_eager"
        ),
    )  # fmt: skip
    for batch in batches(3):
        for step in steps:
            step(double(batch), {"lr": 0.3})
        torch.testing.assert_close(compiled.sides, eager.sides)


@pytest.mark.gpu
def test_a_graph_s_replays_refresh_the_sides() -> None:
    method = vicreg().cuda()
    optimizer = torch.optim.SGD(method.parameters(), lr=torch.zeros((), device="cuda"), fused=True)
    step = GraphedStep(method, Updater(method, optimizer, device="cuda"), device="cuda")
    log = SpreadLog(method)
    seen = []
    for number, batch in enumerate(batches(EAGER_STEPS + 3)):
        step(replace(batch, views=tuple(view.cuda() for view in batch.views)), {"lr": 0.3})
        log.take(number, batch.cursor)
        seen += log.rows(late=True)
    seen += log.rows()
    assert [row["step"] for row in seen] == [*range(EAGER_STEPS + 3)]
    assert len({row["rank_a"] for row in seen}) == len(seen)


def test_a_run_s_log_goes_on_where_it_was_resumed(make_folder, tmp_path: Path) -> None:
    config = tiny(make_folder(train=20, val=0), epochs=3, eval_every=0)
    train(config, tmp_path / "whole")
    train(replace(config, run=replace(config.run, steps=3)), tmp_path / "run")
    with (tmp_path / "run" / "spread.jsonl").open("a") as file:  # of steps that a kill has lost
        file.write(json.dumps({"step": 4, "rank_a": 0.0}) + "\n")
    train(config, tmp_path / "run", resume=True)
    rows = read_spread(tmp_path / "run")
    assert rows == read_spread(tmp_path / "whole")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert read_spread(tmp_path) == []


def spreads(side: str, std: float, rank: float, steps: int = PATIENCE + 5) -> list[dict[str, Any]]:
    healthy = {"std_a": 1.0, "rank_a": 60.0, "std_b": 1.0, "rank_b": 60.0, "rank_most": 64}
    low = {f"std_{side}": std, f"rank_{side}": rank}
    return [{"step": step, **healthy, **low} for step in range(5, steps + 1, 5)]


def test_one_side_s_collapse_is_told_once_though_the_mean_is_healthy() -> None:
    watch = CollapseWatch(Spread("part", 1.0, "--momentum .5 is why", "a line"), base_lr=0.3)
    assert watch.see([], spreads("b", COLLAPSED, 60.0)) is None
    assert watch.see([], spreads("b", COLLAPSED / 2, 1.0, steps=PATIENCE)) is None
    told = watch.see([], spreads("b", COLLAPSED / 2, 1.0))
    assert told is not None
    assert told.startswith(
        "step 25: side b's embeddings are collapsing: std 0.025 of its target, rank 1.0 of at most 64"
    )
    assert "--momentum .5 is why" in told
    assert watch.see([], spreads("b", COLLAPSED / 2, 1.0)) is None  # nor of its rank


def test_a_collapse_that_the_mean_shows_is_not_told_again_of_a_side() -> None:
    watch = CollapseWatch(Spread("part", 1.0, ""), base_lr=0.3)
    rows = [{"step": step, "part": 0.01} for step in range(PATIENCE)]
    assert "the embeddings are collapsing" in (watch.see(rows) or "")
    assert watch.see([], spreads("a", 0.01, 1.0)) is None


@pytest.mark.parametrize(
    ("rank", "most", "tells"), [(1.4, 64, True), (2.1, 64, False), (1.4, 8, False), (1.2, 8, True)]
)
def test_embeddings_along_one_line_are_told(rank: float, most: int, tells: bool) -> None:
    watch = CollapseWatch(Spread("part", 1.0, "the other", "--regularize raw is why"), base_lr=0.3)
    told = watch.see([], [row | {"rank_most": most} for row in spreads("a", 0.9, rank)])
    assert (told is not None) == tells
    if told:
        assert "side a's embeddings lie along one line" in told
        assert "--regularize raw is why" in told


LINES: list[tuple[Any, str]] = [
    (VICRegConfig(expander=(8, 8), covariance=0.0), "--covariance 1 is the published weight"),
    (VICRegConfig(expander=(8, 8)), ""),
    (replace(METHOD_CONFIGS["simsiam"], variance=1.0, regularize="raw", batch_norm=False), "--regularize normalized"),  # type: ignore[type-var]
    (replace(METHOD_CONFIGS["byol"], variance=1.0), "--covariance 0.01 spreads them"),  # type: ignore[type-var]
    (METHOD_CONFIGS["simclr"], "--variance 1 --covariance 0.01 spread them"),
    (replace(METHOD_CONFIGS["simclr"], variance=1.0, covariance=0.1), ""),  # type: ignore[type-var]
]  # fmt: skip


@pytest.mark.parametrize(("config", "says"), LINES)
def test_a_line_s_likely_cause_names_the_flag_that_helps(config: Any, says: str) -> None:
    config.check()
    found = built(config).spread.rank_cause
    assert says in found
    assert bool(says) == bool(found)


@pytest.mark.slow
def test_a_run_whose_raw_hinge_leaves_a_line_says_so(make_folder, tmp_path: Path) -> None:
    """The paper's rows without batch norm and predictor, whose projections meet a raw hinge along one direction."""
    method = SimSiamConfig(
        projector=(16, 16), predictor=False, batch_norm=False, variance=1.0, regularize="raw",
    )  # fmt: skip
    config = tiny(
        make_folder(val=0), epochs=100, steps=200, eval_every=0, checkpoint_every=200, log_every=5, batch_size=16
    )
    config = replace(config, method=method, optim=replace(config.optim, optimizer="adam", base_lr=0.3))
    with (tmp_path / "shown.txt").open("w") as text:
        Trainer(config, tmp_path / "run", resume=False, display=Display(Console(file=text, width=400))).train()
    shown = (tmp_path / "shown.txt").read_text()
    assert shown.count("lie along one line") == 1
    assert "--regularize normalized prevents that" in shown
    assert "rank a " in shown
