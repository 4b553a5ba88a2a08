"""Stages that are computed again in backward change no bit, keep less, and leave running statistics moved once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import TracedGraphs
from refusing import assert_refused
from runs import log, tiny, train
from stepping import held, lars
from torch import Tensor
from waits import Waits

from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.contracts import Batch, Cursor
from fastvicreg.encoders.blocks import Blocks
from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.train.assemble import as_module, build_step
from fastvicreg.train.memory import predict
from fastvicreg.train.steps.cached.config import CachedConfig
from fastvicreg.train.steps.eager.config import EagerConfig
from fastvicreg.train.steps.eager.step import EagerStep
from fastvicreg.train.steps.graphed.config import GraphedConfig
from fastvicreg.train.steps.graphed.step import EAGER_STEPS, GraphedStep
from fastvicreg.train.updater import Updater

ENCODERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet18": (ResNetConfig(arch="resnet18", width=16, stem="3x3s2", drop_path=0.5), (1, 2, 3, 4)),
    "resnet50": (ResNetConfig(arch="resnet50", width=16, stem="3x3s2"), (2, 4)),
    "vit": (ViTConfig("vit_tiny", patch=8, grid=4, depth=3, drop_path=0.5), (1,)),
    "convnext": (ConvNeXtConfig("convnext_tiny", width=8, patch=1, layer_scale=0, drop_path=0.5), (1, 3)),
}
METHODS = {"vicreg": VICRegConfig((32, 24)), "byol": BYOLConfig((32, 24), predictor_hidden=(32,), momentum=0.9)}


def config(encoder: Any = ENCODERS["resnet18"][0], method: str = "vicreg", **run: Any) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(image_size=32, recipe="small"),
        encoder=encoder,
        method=METHODS[method],
        optim=OptimConfig(optimizer="sgd", base_lr=0.5),
        run=RunConfig(batch_size=8, seed=3, **run),
    )


def batch(number: int, samples: int = 8, device: str = "cpu") -> Batch:
    made = torch.Generator().manual_seed(number)
    noise = torch.randn(2, samples, 3, 32, 32, generator=made).to(device)
    index_B = torch.arange(samples) + samples * number
    views = tuple(view.contiguous(memory_format=torch.channels_last) for view in noise)
    return Batch(views, index_B, index_B, Cursor(0, number))


def stepped(settings: TrainConfig, count: int = 3) -> tuple[list[float], dict[str, Tensor]]:
    """Totals of some steps, and the state that they leave."""
    step = build_step(settings, device="cpu", precision="off")
    scalars = {"lr": 0.05, "momentum": 0.9}
    found = [float(step(batch(number), scalars).total) for number in range(count)]
    return found, as_module(step.method).state_dict()


def assert_same(settings: TrainConfig, stages: tuple[int, ...]) -> None:
    again = replace(settings, run=replace(settings.run, recompute_stages=stages))
    again.check()
    (wanted, left), (found, state) = stepped(settings), stepped(again)
    assert found == wanted
    assert found[0] != found[2]
    assert state.keys() == left.keys()
    for name, value in state.items():
        assert torch.equal(value, left[name]), name


@pytest.mark.parametrize("views", ["joint", "separate"])
@pytest.mark.parametrize("name", ENCODERS)
def test_steps_are_the_same_to_the_bit(name: str, views: Any) -> None:
    """Weights, running statistics and their counts, with stochastic depth."""
    encoder, stages = ENCODERS[name]
    assert_same(config(encoder, views=views), stages)


def test_a_momentum_network_s_step_is_the_same_to_the_bit() -> None:
    assert_same(config(method="byol"), (1, 2, 3, 4))


def test_a_cached_step_is_the_same_to_the_bit() -> None:
    """Its parts' draws are over before their backward pass."""
    assert_same(replace(config(), step=CachedConfig(2)), (1, 2, 3, 4))


@pytest.mark.parametrize("activations", ["keep", "recompute"])
def test_with_activations_it_is_the_same_to_the_bit(activations: Any) -> None:
    assert_same(config(activations=activations), (2, 3))


def test_a_graph_s_replays_are_the_same() -> None:
    def totals(stages: tuple[int, ...]) -> list[float]:
        built = build_step(config(recompute_stages=stages), device="cpu", precision="off")
        method = as_module(built.method)
        optimizer = lars(method, capturable=True)
        graphs = TracedGraphs(lambda: held(method, optimizer))
        step = GraphedStep(built.method, Updater(method, optimizer), graphs=graphs)
        return [float(step(batch(number), {"lr": 0.05}).total) for number in range(EAGER_STEPS + 3)]

    assert totals((1, 2, 3, 4)) == pytest.approx(totals(()), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("way", [EagerConfig(), GraphedConfig()], ids=lambda way: way.name)
def test_on_a_gpu_steps_agree_and_take_less_memory(way: Any) -> None:
    def trained(stages: tuple[int, ...]) -> tuple[list[float], int]:
        settings = replace(config(recompute_stages=stages), step=way)
        step = build_step(settings, device="cuda", precision="bf16")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        given = (batch(number, 256, "cuda") for number in range(EAGER_STEPS + 3))
        found = [float(step(one, {"lr": 0.05}).total) for one in given]
        step.close()
        return found, torch.cuda.max_memory_allocated() - before

    (wanted, whole), (found, less) = trained(()), trained((1, 2, 3, 4))
    assert found == pytest.approx(wanted, rel=3e-2)
    assert less < 0.8 * whole


def test_no_block_s_second_pass_waits_for_the_device() -> None:
    built = build_step(config(recompute_stages=(1, 2, 3, 4)), device="cpu", precision="off")
    method = as_module(built.method)
    step = EagerStep(built.method, Updater(method, lars(method, capturable=True)))
    step(batch(0), {"lr": 0.05})
    with Waits() as waits:
        step(batch(1), {"lr": 0.05})
    assert not waits.found


def test_blocks_run_once_without_gradients_and_twice_with() -> None:
    step = build_step(config(recompute_stages=(2,)), device="cpu", precision="off")
    encoder = step.method.encoders["encoder"]
    stages = [part for part in encoder.modules() if isinstance(part, Blocks)]
    runs = [0] * len(stages)
    for number, stage in enumerate(stages):

        def count(*_: Any, number: int = number) -> None:
            runs[number] += 1

        stage[0].register_forward_pre_hook(count)
    step(batch(0), {"lr": 0.05})
    assert runs == [1, 2, 1, 1]
    with torch.no_grad():
        step.method.embed(batch(0).views)
    assert runs == [2, 3, 2, 2]


@pytest.mark.parametrize("activations", ["keep", "recompute"])
def test_the_foretold_memory_is_less_for_each_stage(activations: Any) -> None:
    def kept(*stages: int) -> int:
        return predict(config(activations=activations, recompute_stages=stages), 8, precision="bf16").kept

    found = [kept(), kept(1), kept(1, 2), kept(1, 2, 3)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)
    assert found[-1] < (0.5 if activations == "keep" else 0.8) * found[0]
    assert kept(1, 2, 3, 4) == found[-1], "a block of the first stage is the most there is at a time"


def test_a_transformer_s_foretold_memory_holds_a_whole_block_beside_the_inputs() -> None:
    def kept(*stages: int, depth: int) -> float:
        settings = config(ViTConfig("vit_tiny", patch=8, grid=4, depth=depth), recompute_stages=stages)
        return predict(settings, 8, precision="bf16").kept

    block = kept(depth=6) - kept(depth=5)
    given = kept(1, depth=6) - kept(1, depth=5)
    assert given < 0.2 * block
    assert kept(1, depth=6) == pytest.approx(kept(depth=1) + 5 * given, rel=0.02)


def test_a_run_resumes_with_other_stages_to_the_same_log(make_folder: Any, tmp_path: Path) -> None:
    settings = tiny(make_folder(train=20, val=0), epochs=2, eval_every=0)
    train(settings, tmp_path / "whole")
    train(replace(settings, run=replace(settings.run, steps=3)), tmp_path / "part")
    again = replace(settings, run=replace(settings.run, recompute_stages=(1, 4)))
    train(again, tmp_path / "part", resume=True)
    assert log(tmp_path / "part") == log(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--recompute-stages 1 5", "--recompute-stages 1 5: resnet18 has stages 1 to 4: give some of these."),
        ("--recompute-stages 0", "--recompute-stages 0: resnet18 has stages 1 to 4: give some of these."),
        ("--arch vit_tiny --recompute-stages 2", "--recompute-stages 2: vit_tiny has one, of all blocks: give 1."),
        (
            "--step compiled --recompute-stages 1",
            "--recompute-stages 1: --step compiled keeps what its compiler chooses",
        ),
    ],
)
def test_what_there_is_not_is_one_line(
    arguments: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(arguments.split(), says, tmp_path / "run", capsys)
