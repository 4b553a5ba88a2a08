"""The memory that is foretold, against what the network's own tensors take and what fits by it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from refusing import assert_refused

from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.train import assemble
from fastvicreg.train.distributed import Processes
from fastvicreg.train.memory import MOMENTS, Memory, fitted, predict, shortage, shortage_of
from fastvicreg.train.steps.cached.config import CachedConfig
from fastvicreg.train.steps.compiled.config import CompiledConfig


def config(**run: Any) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(image_size=32),
        encoder=ResNetConfig(arch="resnet18", width=16, stem="3x3s2"),
        method=VICRegConfig(expander=(64, 64)),
        run=RunConfig(batch_size=64, **run),
    )


def test_weights_gradients_and_moments_are_the_step_s_own() -> None:
    settings = config()
    found = predict(settings, 64, precision="off")
    step = assemble.build_step(settings, device="cpu", precision="off")
    module = assemble.as_module(step.method)
    assert found.weights == sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    assert found.gradients == found.moments == sum(param.nbytes for param in module.parameters())
    assert found.views == 2 * 64 * 3 * 32 * 32 * 4
    for name in ("adam", "adamw"):
        adam = replace(settings, optim=OptimConfig(optimizer=name))
        assert predict(adam, 64, precision="off").moments == 2 * found.moments
    assert set(MOMENTS) == set(get_args(get_type_hints(OptimConfig)["optimizer"]))
    target = replace(settings, method=BYOLConfig((64, 64), predictor_hidden=(64,)))
    assert predict(target, 64, precision="off").weights > predict(target, 64, precision="off").gradients * 1.5


def test_what_is_kept_is_what_autograd_holds_of_a_real_forward_pass() -> None:
    settings = config()
    step = assemble.build_step(settings, device="cpu", precision="off")
    views = tuple(torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last) for _ in range(2))
    held: dict[int, torch.UntypedStorage] = {}
    module = assemble.as_module(step.method)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *views)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embeddings = step.method.embed(views)
    real = sum(storage.nbytes() for storage in held.values())
    assert embeddings.views_BD[0].requires_grad
    assert predict(settings, 8, precision="off").kept == pytest.approx(real, rel=0.05)


def test_the_ways_out_need_less() -> None:
    whole = predict(config(), 64, precision="bf16")
    assert predict(config(), 128, precision="bf16").kept == pytest.approx(2 * whole.kept, rel=0.02)
    assert predict(config(activations="recompute"), 64, precision="bf16").kept < 0.75 * whole.kept
    cached = predict(replace(config(), step=CachedConfig(4)), 64, precision="bf16")
    assert cached.kept < 0.3 * whole.kept
    assert cached.views == whole.views


@pytest.mark.parametrize("processes", [1, 4])
def test_too_large_a_batch_is_told_with_one_that_fits(processes: int) -> None:
    settings = config(activations="keep")
    settings = replace(settings, run=replace(settings.run, batch_size=4096))
    ranks = Processes(world_size=processes)
    free = predict(settings, 512, precision="bf16").total
    line = shortage_of(settings, ranks, free, where="cuda:0", precision="bf16")
    found = re.fullmatch(
        r"--batch-size 4096 needs about \d+ GB on cuda:0, where \d+ GB are free: give --batch-size (\d+), "
        r"--activations recompute, --recompute-stages 1 2 3 4, --step cached\.",
        line,
    )
    assert found, line
    fits = int(found.group(1))
    assert fits % (8 * processes) == 0
    assert fits / processes == pytest.approx(512, rel=0.02)
    fitting = replace(settings, run=replace(settings.run, batch_size=fits))
    assert predict(fitting, fits // processes, precision="bf16").total <= free
    assert not shortage_of(fitting, ranks, free, where="cuda:0", precision="bf16")


@pytest.mark.slow
def test_activations_are_recomputed_where_they_do_not_fit_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(activations="auto")
    kept, recomputed = (
        predict(config(activations=choice), 64, precision="bf16").total for choice in ("keep", "recompute")
    )

    def chosen_of(free: float) -> tuple[TrainConfig, str]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 1 << 40))
        return fitted(settings, Processes(), device="cuda:0", precision="bf16")

    def chosen(free: float) -> tuple[str, str]:
        decided, said = chosen_of(free)
        assert decided.run.recompute_stages == ()
        return decided.run.activations, said

    assert chosen(kept) == ("keep", "")
    activations, said = chosen(recomputed)
    assert activations == "recompute"
    assert said.endswith("GB are free (--activations keep: not so).")
    decided, said = chosen_of(0.9 * recomputed)
    assert (decided.run.activations, decided.run.recompute_stages) == ("recompute", (1,))
    assert said.startswith("outputs of batch norms and, as by --recompute-stages 1, blocks are computed again")
    own = replace(settings, run=replace(settings.run, recompute_stages=(2,)))
    assert fitted(own, Processes(), device="cuda:0", precision="bf16")[0].run.recompute_stages == (2,)
    least = predict(config(activations="recompute", recompute_stages=(1, 2, 3, 4)), 64, precision="bf16").total
    decided, said = chosen_of(0.85 * least)
    assert (decided.run.activations, decided.run.recompute_stages, said) == ("recompute", (1, 2, 3, 4), "")
    line = shortage(decided, Processes(), device="cuda:0", precision="bf16")
    assert re.search(r": give --batch-size \d+, --step cached\.$", line), line  # and no way out that is none
    assert fitted(config(activations="keep"), Processes(), device="cuda:0", precision="bf16")[1] == ""
    assert fitted(settings, Processes(), device="cpu", precision="off")[0].run.activations == "keep"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (recomputed, 1 << 40))
    compiled = replace(settings, step=CompiledConfig())
    assert fitted(compiled, Processes(), device="cuda:0", precision="bf16")[0].run.activations == "keep"


def test_a_cpu_is_not_asked_and_a_device_is_before_anything_is_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not shortage(config(), Processes(), device="cpu", precision="off")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 1 << 30))
    line = shortage(config(), Processes(), device="cuda:0", precision="bf16")
    assert line.startswith("--batch-size 64 needs about 0 GB on cuda:0")
    assert "--batch-size" not in line.partition("give ")[2]  # not even the weights fit


def test_what_an_earlier_run_of_the_process_has_left_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps what is freed, and what refers to itself is not even that."""
    taken = ["the run's", "kept by torch"]

    class Earlier:
        def __init__(self) -> None:
            self.own = self

        def __del__(self) -> None:
            taken.remove("the run's")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: taken.remove("kept by torch") if len(taken) == 1 else None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20 if taken else 1 << 40, 1 << 40))
    Earlier()
    assert shortage(config(), Processes(), device="cuda:0", precision="bf16") == ""


def test_a_total_is_the_sum_of_its_parts() -> None:
    assert Memory(1, 2, 3, 4, 5).total == 15


@pytest.mark.parametrize("arguments", [["--width", "999999999999"], ["--expander", *["999999999999"] * 2]])
def test_networks_that_no_memory_holds_are_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "there is no memory for the networks of --method vicreg"
    assert_refused(["--device", "cpu", *arguments], said, tmp_path / "run", capsys)
