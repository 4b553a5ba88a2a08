"""The swap test leaves out what it says, goes on through the data, and names the part that holds a run back."""

from __future__ import annotations

import json
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvicreg import stages
from fastvicreg.cli import main
from fastvicreg.config import DataConfig, RunConfig, TrainConfig
from fastvicreg.contracts import Cursor
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.profiles.bench import swap, swap_verdict
from fastvicreg.profiles.charts import bars
from fastvicreg.profiles.parts import Loop, first_batch, opened
from fastvicreg.train.steps.eager.step import EagerStep

TINY = ("--preset", "demo", "--batch-size", "8", "--image-size", "16", "--width", "16", "--expander", "16", "16")
ROWS = [swap.FULL, *(name for part, name in swap.WITHOUT.items() if part != "comm"), swap.LOADER, swap.FED, swap.MODEL]


def tiny(data: Path, pipeline: str = "native") -> TrainConfig:
    return TrainConfig(
        data=DataConfig(data=str(data), pipeline=pipeline, image_size=16, recipe="small", workers=2, prefetch=1),
        encoder=ResNetConfig(arch="resnet18", width=16, stem="3x3s2"),
        method=VICRegConfig(expander=(16, 16)),
        run=RunConfig(epochs=20, batch_size=8, device="cpu", eval_every=0),
    )


@pytest.mark.slow
def test_the_command_has_a_row_a_part_a_verdict_and_a_picture(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(make_folder(val=0))
    short = ["--repeats", "1", "--window", "1", "--prefetch", "1"]
    arguments = [*short, "--json", "swap.json", "--plot", "swap.svg", "--out", "figures"]
    assert main(["bench", "swap", "--data", data, *TINY, *arguments]) == 0
    written = json.loads(Path("swap.json").read_text())
    assert {"command", "commit", "versions", "hardware", "n", "rows", "verdict", "config"} == written.keys()
    rows = {row["swap"]: row for row in written["rows"]}
    assert sorted(rows) == sorted(ROWS)
    assert all(row["images_per_s"] > 0 and row["n"] == 1 for row in rows.values())
    assert rows[swap.FULL]["ratio"] == 1.0
    for row in rows.values():
        assert ("saves" in row) == (row["swap"] in swap.WITHOUT.values())
        assert 0 <= row.get("saves", 0) < 1
    assert written["verdict"]["text"] in capsys.readouterr().out.replace("\n", " ")
    picture = Path("swap.svg").read_text()
    assert all(name in picture for name in ROWS)
    assert json.loads(Path("figures/swap.json").read_text())["rows"] == written["rows"]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "swap.json", "swap.svg", "figures"}


def stages_of(loop: Loop, steps: int = 1) -> set[str]:
    """The project's own annotations in ``steps`` steps."""
    next(loop)  # the first makes what the others use
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        assert len(list(islice(loop, steps))) == steps
    loop.close()
    return {event.name for event in profiler.events() or () if event.name.startswith("fv.")}


def test_each_row_leaves_out_its_part_and_nothing_else(make_folder) -> None:
    data = {stages.DATA_WAIT, stages.AUGMENT}
    model = {stages.FORWARD, stages.BACKWARD}
    everything = data | model | {stages.LOSS, stages.OPTIMIZER}
    expected = {
        swap.FULL: everything,
        swap.WITHOUT["data"]: everything,
        swap.WITHOUT["augment"]: everything,
        swap.WITHOUT["loss"]: everything - {stages.LOSS},
        swap.WITHOUT["optimizer"]: everything - {stages.OPTIMIZER},
        swap.LOADER: {stages.DATA_WAIT},
        swap.FED: data,
        swap.MODEL: model,
    }
    config = tiny(make_folder(val=0))
    with opened(config) as run, ExitStack() as ending:
        loops = swap.loops_of(config, run, ending)
        assert {name: stages_of(loop(Cursor(0, 0))) for name, loop in loops.items()} == expected


def test_each_row_s_step_is_closed_even_where_one_fails(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded step that is not would keep the processes from parting."""
    built, closed = set(), []

    def build(step: EagerStep, *arguments: Any, **options: Any) -> None:
        made(step, *arguments, **options)
        built.add(id(step))

    made = EagerStep.__init__
    monkeypatch.setattr(EagerStep, "__init__", build)
    monkeypatch.setattr(EagerStep, "close", lambda step: closed.append(id(step)))
    monkeypatch.setattr(swap.Turn, "take", lambda turn, start: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        swap.run(tiny(make_folder(val=0)), repeats=1)
    assert len(built) == 4  # the run's own, without loss, without optimizer, and the model alone
    assert sorted(closed) == sorted(built)


def test_synthetic_data_decodes_nothing_and_no_augmentation_computes_nothing(
    make_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(make_folder(val=0))
    decoded, augmented = [], []
    with opened(config) as run:
        first = first_batch(run)
        count(monkeypatch, "fastvicreg.pipelines.engines.host.decode_sample", decoded)
        count(monkeypatch, "fastvicreg.kernels.augment.parallel.augment", augmented)
        loops = swap.loops_of(config, run, ExitStack())
        for calls, name in ((decoded, swap.WITHOUT["data"]), (augmented, swap.WITHOUT["augment"])):
            for counted, calls_there in ((swap.FULL, True), (name, False)):
                calls.clear()
                loop = loops[counted](Cursor(0, 0))
                next(loop)
                loop.close()
                assert bool(calls) == calls_there, (counted, name)
    assert torch.isfinite(first.views[0]).all()


def count(monkeypatch: pytest.MonkeyPatch, target: str, calls: list[int]) -> None:
    """Let ``target`` note each of its calls."""
    from importlib import import_module

    holder, _, name = target.rpartition(".")
    try:
        place: Any = import_module(holder)
    except ModuleNotFoundError:
        module, _, kind = holder.rpartition(".")
        place = getattr(import_module(module), kind)
    original = getattr(place, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, counting)


def test_without_update_the_weights_stay(make_folder) -> None:
    config = tiny(make_folder(val=0))
    with opened(config) as run:
        batch, still = first_batch(run), run.step.replaced(updater=swap.without_update(run))
        before = [p.detach().clone() for p in run.module.parameters()]
        still(batch, {"lr": 1.0})
        assert all(torch.equal(a, b) for a, b in zip(before, run.module.parameters(), strict=True))
        assert all(p.grad is not None for p in run.module.parameters())
        run.step(batch, {"lr": 1.0})  # negative control
        assert not all(torch.equal(a, b) for a, b in zip(before, run.module.parameters(), strict=True))


def test_without_a_loss_every_weight_still_gets_a_gradient(make_folder) -> None:
    config = tiny(make_folder(val=0))
    with opened(config) as run:
        batch = first_batch(run)
        swap.mean_square(run.method.embed(batch.views), None).total.backward()
        # zero_init_residual: what lies behind a scale of 0 has no gradient yet, under any loss.
        own = {name for name, p in run.module.named_parameters() if p.grad is not None and p.grad.any()}
        run.step(batch, {"lr": 0.0})
        assert own == {name for name, p in run.module.named_parameters() if p.grad is not None and p.grad.any()}


def test_turns_go_on_through_the_epochs() -> None:
    seen: list[Cursor] = []

    def loop(start: Cursor) -> Loop:
        batch = start.batch
        while True:
            seen.append(Cursor(start.epoch, batch))
            yield seen[-1]
            batch += 1

    turn = swap.Turn(loop, "cpu", filling=2, window=3)
    seconds, cursor = turn.take(Cursor(0, 0))
    assert seconds > 0
    assert turn.take(cursor)[1] == Cursor(0, 10)
    assert seen == [Cursor(0, batch) for batch in range(10)]


def figures(**rates: tuple[float, float]) -> list[dict[str, Any]]:
    """Rows as ``swap.run`` makes them, from (images a second, spread of the ratio) by part."""
    names = swap.WITHOUT | {"full": swap.FULL, "loader": swap.LOADER, "model": swap.MODEL}
    full = rates["full"][0]
    return [
        {
            "swap": names[part],
            "images_per_s": rate,
            "ratio": rate / full,
            "ratio_spread": spread,
            "saves": max(0.0, 1 - full / rate),
        }
        for part, (rate, spread) in rates.items()
    ]


BALANCED = {"augment": (105.0, 0.01), "loss": (103.0, 0.01), "optimizer": (108.0, 0.01), "model": (125.0, 0.01)}


@pytest.mark.parametrize(
    ("changed", "bottleneck", "margin", "separated"),
    [
        ({"loader": (102.0, 0.01), "data": (170.0, 0.01)}, "data", 170 / 102, True),
        ({"loader": (102.0, 0.3), "data": (110.0, 0.3)}, "data", 110 / 102, False),
        ({"loader": (900.0, 0.1), "data": (101.0, 0.01)}, "model", (100 / 125) / (1 - 100 / 108), True),
        ({"loader": (900.0, 0.1), "data": (101.0, 0.01), "optimizer": (900.0, 0.01)}, "optimizer", 800 / 720, True),
        ({"loader": (900.0, 0.1), "data": (101.0, 0.01), "loss": (600.0, 0.2)}, "loss", (5 / 6) / 0.8, False),
        ({"loader": (9000.0, 0.1)}, "model", (100 / 125) / (1 - 100 / 108), True),  # --pipeline synthetic
    ],
)
def test_the_verdict_names_the_dearest_part_and_says_when_it_cannot_tell(
    changed: dict[str, tuple[float, float]], bottleneck: str, margin: float, separated: bool
) -> None:
    verdict = swap_verdict.verdict(figures(full=(100.0, 0.0), **(BALANCED | changed)), "native")
    assert (verdict.bottleneck, verdict.separated) == (bottleneck, separated)
    assert verdict.margin == pytest.approx(margin)
    assert ("not proven" in verdict.text) != separated


def test_synthetic_data_is_not_left_out_twice(make_folder) -> None:
    config = tiny(make_folder(val=0), pipeline="synthetic")
    with opened(config) as run:
        assert swap.WITHOUT["data"] not in swap.loops_of(config, run, ExitStack())


def test_only_what_is_decoded_ahead_is_waited_out_before_a_turn() -> None:
    decoded, synthetic = (TrainConfig(data=DataConfig(pipeline=name, prefetch=7)) for name in ("native", "synthetic"))
    assert swap.filling(decoded, swap.FULL) == swap.filling(decoded, swap.LOADER) == 9
    assert swap.filling(decoded, swap.WITHOUT["data"]) == swap.filling(decoded, swap.MODEL) == 2
    assert swap.filling(synthetic, swap.FULL) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "swap", *TINY, "--repeats", "0"], "--repeats 0"),
        (["bench", "swap", *TINY, "--plot", "swap.txt"], "--plot swap.txt"),
        (["bench", "swap", *TINY, "--pipeline", "nativ"], "did you mean 'native'"),
        (["bench", "swap", "--window", "x"], "--window"),
        (["bench", "--repeats", "2", "swap"], "name the part first"),
        (["bench", "lars", "--plot", "lars.png"], "bench lars has no picture"),
        (["bench", "step", "--preset", "demon"], "did you mean 'demo'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the picture"):
        bars(tmp_path / "file" / "x.png", [{"a": "b", "v": 1.0}], label=("a",), value="v", title="")


@pytest.mark.slow
def test_a_budget_ends_the_rounds_and_progress_tells_what_is_left(make_folder) -> None:
    told: list[tuple[int, int, float]] = []
    config = tiny(make_folder(val=0))
    rows = swap.run(
        config, repeats=50, window=1, budget=1e-3, progress=lambda done, total, left: told.append((done, total, left))
    )
    assert {row["n"] for row in rows} == {1}
    assert [done for done, _, _ in told] == list(range(len(rows)))
    assert {total for _, total, _ in told} == {len(rows)}
    left = [seconds for _, _, seconds in told]
    assert left == sorted(left, reverse=True)
    assert left[-1] > 0


@pytest.mark.parametrize(
    ("rates", "note"),
    [
        ([10.0, 11.0, 9.0, 10.5, 9.5], swap.NO_DIFFERENCE),
        ([20.0, 21.0, 19.0, 20.5, 19.5], None),
        ([12.0], "1 round: the noise is not known"),
    ],
)
def test_a_row_says_where_it_shows_nothing(rates: list[float], note: str | None) -> None:
    row = swap.row_of(swap.WITHOUT["loss"], rates, [10.0] * len(rates))
    assert row.get("note") == note
    assert "note" not in swap.row_of(swap.MODEL, rates, [10.0] * len(rates))
