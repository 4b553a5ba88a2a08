"""Training: a stopped run goes on exactly where it was, and what is damaged costs one checkpoint, not the run."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from runs import log, require_same_when_resumed, tiny, train

from fastvicreg.config import OptimConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import read
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.assemble import assemble
from fastvicreg.train.trainer import Trainer


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_resumed_run_equals_the_uninterrupted_one(
    uninterrupted: tuple[Path, Path], tmp_path: Path, stop: int
) -> None:
    data, whole = uninterrupted
    config = tiny(data)
    train(replace(config, run=replace(config.run, steps=stop)), tmp_path / "run")
    assert log(tmp_path / "run") != log(whole)
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(whole)
    # Negative control: the comparison would notice another run.
    assert len({row["total"] for row in log(whole) if "total" in row}) == 9


def test_total_steps_end_every_schedule_in_mid_epoch_and_resume(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, whole = uninterrupted
    config = tiny(data, total_steps=7)
    run = require_same_when_resumed(config, tmp_path)
    rows = [row for row in log(run) if "total" in row]
    assert [row["step"] for row in rows] == list(range(1, 8))
    # The cosine's last step is as near its end as the last of three whole epochs.
    last, of_nine = rows[-1]["lr"], [row["lr"] for row in log(whole) if "lr" in row]
    assert of_nine[-1] < last < of_nine[-2]
    # The end of the run is evaluated, as that of whole epochs.
    assert [row["step"] for row in log(run) if "knn" in row] == [3, 6, 7]
    longer = replace(config, run=replace(config.run, total_steps=8))
    with pytest.raises(ValueError, match=r"--total-steps 7"):
        train(longer, run, resume=True)


def test_sizes_by_epochs_and_a_length_by_steps_do_not_go_together(uninterrupted: tuple[Path, Path]) -> None:
    data, _ = uninterrupted
    config = tiny(data, total_steps=7)
    config = replace(config, data=replace(config.data, resolution="32:64"))
    with pytest.raises(ValueError, match=r"--resolution 32:64 goes by epochs, --total-steps 7 by steps"):
        config.check()


def test_another_seed_gives_another_log(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    train(tiny(data, seed=1, steps=2), tmp_path / "run")
    assert log(tmp_path / "run")[0]["total"] != log(whole)[0]["total"]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, whole = uninterrupted
    config = tiny(data)
    train(replace(config, run=replace(config.run, steps=5)), tmp_path / "run")
    older, newer = checkpoints.listed(tmp_path / "run" / "checkpoints")
    damaged = newer / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (older / "unrelated.txt").write_text("a stray file harms nothing")
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(whole)
    assert "damaged" in (tmp_path / "display.txt").read_text()


def test_resume_with_nothing_there_starts_at_zero_and_says_so(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    train(tiny(data), tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(whole)
    assert "nothing to resume" in (tmp_path / "display.txt").read_text()


def test_a_resumed_run_cannot_change_what_it_computes(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = uninterrupted
    config = tiny(data, steps=1)
    train(config, tmp_path / "run")
    for changed, flag in (
        (replace(config, optim=replace(config.optim, base_lr=1.0)), "--base-lr 8.0"),
        (replace(config, method=VICRegConfig(expander=(32, 16))), "--expander 16 16"),
    ):
        with pytest.raises(UserError, match=flag):
            train(changed, tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_architecture_names_the_tensor(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, _ = uninterrupted
    config = tiny(data, steps=1)
    train(config, tmp_path / "run")
    other = replace(config, encoder=replace(config.encoder, width=32))  # type: ignore[type-var]
    saved = tmp_path / "run" / "config.json"
    content = json.loads(saved.read_text())
    content["encoder"]["width"] = 32
    saved.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"another architecture: encoder\.conv1\.weight is \(16, 3, 3, 3\) there"):
        train(other, tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_stops_before_the_update(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = uninterrupted
    config = tiny(data)
    run = assemble(config)
    trainer = Trainer(config, tmp_path / "run", resume=False, display=Display(quiet=True), run=run)
    with torch.no_grad():
        run.encoder.get_parameter("conv1.weight")[0, 0, 0, 0] = float("nan")
    before = {name: value.clone() for name, value in run.module.named_parameters()}
    with pytest.raises(UserError, match=r"no longer finite after step 0 .*a lower --base-lr than 8"):
        trainer.train()
    for name, value in run.module.named_parameters():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name
    assert not checkpoints.listed(tmp_path / "run" / "checkpoints")


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path: Path, make_folder) -> None:
    config = tiny(make_folder())
    run = assemble(config)
    trainer = Trainer(config, tmp_path / "run", resume=False, display=Display(quiet=True), run=run)
    weight = run.encoder.get_parameter("conv1.weight")
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weight.detach().clone()
    with pytest.raises(UserError, match="no longer finite"):
        trainer.train()
    assert torch.equal(weight, before)


def test_fp16_that_never_finds_a_scale_stops(tmp_path: Path, make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvicreg.train.trainer.SCALER_PATIENCE", 3)
    config = tiny(make_folder(), precision="fp16", log_every=1, checkpoint_every=100)
    run = assemble(config)
    trainer = Trainer(config, tmp_path / "run", resume=False, display=Display(quiet=True), run=run)
    with torch.no_grad():
        run.encoder.get_parameter("conv1.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="no longer finite after step 3"):
        trainer.train()


def test_data_that_changed_is_noticed_on_resume(tmp_path: Path, make_folder) -> None:
    data = make_folder(train=24, val=0)
    config = tiny(data)
    train(replace(config, run=replace(config.run, steps=2)), tmp_path / "run")
    (data / "class0" / "000.jpg").unlink()
    saved = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UserError, match="24 images and its data now has 23"):
        train(replace(config, run=replace(config.run, keep=7)), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == saved


def test_as_many_other_images_are_told_of_once(tmp_path: Path, make_folder) -> None:
    data, said = make_folder(train=24, val=0), "the 24 images have other names, or another order, than those that"
    config = tiny(data)
    for steps in (2, 3):
        train(replace(config, run=replace(config.run, steps=steps)), tmp_path / "run", resume=steps > 2)
    assert said not in (tmp_path / "display.txt").read_text()
    (data / "class0" / "000.jpg").rename(data / "class2" / "999.jpg")
    for steps in (4, 5):
        train(replace(config, run=replace(config.run, steps=steps)), tmp_path / "run", resume=True)
    assert (tmp_path / "display.txt").read_text().count(said) == 1


def test_checkpoints_that_are_all_damaged_are_not_started_over(tmp_path: Path, make_folder) -> None:
    config = tiny(make_folder(val=0))
    train(replace(config, run=replace(config.run, steps=3)), tmp_path / "run")
    for path in checkpoints.listed(tmp_path / "run" / "checkpoints"):
        (path / "model.safetensors").write_bytes(b"")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_faults_of_an_evaluation_are_told(tmp_path: Path, make_folder) -> None:
    data = make_folder()
    (data / "val" / "class1" / "001.jpg").write_bytes(b"broken")
    train(tiny(data, epochs=1), tmp_path / "run")
    assert [row["replaced"] for row in read(tmp_path / "run") if "knn" in row] == [1.0]
    assert "1 images of the evaluation replaced" in (tmp_path / "display.txt").read_text()


def test_what_cannot_be_evaluated_can_still_be_trained(tmp_path: Path, make_folder) -> None:
    data = make_folder(val=12)
    for path in (data / "val").rglob("*.jpg"):
        path.write_bytes(b"broken")
    outcome = train(tiny(data, epochs=1), tmp_path / "run")
    assert outcome.step == 3
    assert checkpoints.listed(tmp_path / "run" / "checkpoints")
    assert "no evaluation" in (tmp_path / "display.txt").read_text()


def test_without_labels_rankme_is_recorded_alone(tmp_path: Path, make_folder) -> None:
    train(tiny(make_folder(val=0, train=16), epochs=1), tmp_path / "run")
    assert [row.keys() for row in read(tmp_path / "run") if "rankme" in row] == [{"epoch", "step", "rankme"}]


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_autocast_trains_and_resumes_with_its_scaler(
    uninterrupted: tuple[Path, Path], tmp_path: Path, precision: str
) -> None:
    data, _ = uninterrupted
    config = tiny(data, precision=precision, eval_every=0)
    train(config, tmp_path / "whole")
    train(replace(config, run=replace(config.run, steps=4)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    state = json.loads((checkpoints.listed(tmp_path / "run" / "checkpoints")[-1] / "state.json").read_text())
    assert bool(state["scaler"]) == (precision == "fp16")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_other_optimizers_resume_exactly_too(uninterrupted: tuple[Path, Path], tmp_path: Path, optimizer: str) -> None:
    data, _ = uninterrupted
    config = tiny(data, eval_every=0)
    config = replace(config, optim=OptimConfig(optimizer=optimizer, base_lr=0.1))  # type: ignore[arg-type]
    train(config, tmp_path / "whole")
    train(replace(config, run=replace(config.run, steps=4)), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert log(tmp_path / "run") == log(tmp_path / "whole")


def test_faults_are_named_at_the_end_of_an_epoch(make_folder, tmp_path: Path) -> None:
    data = make_folder(train=16, val=0)
    (data / "class1" / "001.jpg").write_bytes(b"broken")
    train(tiny(data, epochs=1), tmp_path / "run")
    shown = (tmp_path / "display.txt").read_text()
    assert "epoch 0: 1 samples replaced by a neighbour (1 undecodable)" in shown
    assert "class1/001.jpg: not an image of a known type" in shown


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ffcv") is None, reason="FFCV is not installed")
def test_the_pipeline_makes_no_difference_to_what_is_learnt(tmp_path: Path, make_folder) -> None:
    data = make_folder(train=24, val=0)
    beton = tmp_path / "data.beton"
    convert_dataset(data, beton)
    logs = {}
    for pipeline, path in (("native", data), ("native", beton), ("ffcv", beton)):
        config = tiny(path, epochs=2, eval_every=0)
        run = tmp_path / f"{pipeline}-{path.name}"
        train(replace(config, data=replace(config.data, pipeline=pipeline)), run)
        logs[run.name] = log(run)
    assert logs["native-data"] == logs["native-data.beton"] == logs["ffcv-data.beton"]
