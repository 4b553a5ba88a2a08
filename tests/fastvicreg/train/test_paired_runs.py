"""Whole runs of pairs: trained, stopped, resumed, evaluated and exported."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paired import TEXT_ENCODERS, captions, image_text, shards, sound_pair, sounds
from runs import log, train

from fastvicreg import load_encoder
from fastvicreg.cli import main
from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.evaluate.eval_settings import EvalSettings
from fastvicreg.evaluate.frozen import evaluate_run
from fastvicreg.evaluate.online import OnlineEvaluation
from fastvicreg.evaluate.protocols.knn import KNN
from fastvicreg.evaluate.protocols.linear import Linear
from fastvicreg.evaluate.protocols.retrieval import Retrieval
from fastvicreg.methods.barlow_twins.config import BarlowTwinsConfig
from fastvicreg.methods.simclr.config import SimCLRConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.wmse.config import WMSEConfig
from fastvicreg.pipelines.pairs.vocabulary import FILE, Vocabulary
from fastvicreg.train.assemble import assemble
from fastvicreg.train.memory import predict
from fastvicreg.train.steps.compiled.config import CompiledConfig
from fastvicreg.train.steps.eager.config import EagerConfig


def loaded(path: Path, **options: Any) -> Any:
    """An encoder, whose ``preprocess`` a type checker does not know."""
    return load_encoder(path, **options)


@pytest.fixture
def pictures(tmp_path: Path) -> TrainConfig:
    return image_text(captions(tmp_path / "data"))


@pytest.fixture
def pictures_and_a_transformer(tmp_path: Path) -> TrainConfig:
    return image_text(captions(tmp_path / "data"), "text_transformer")


@pytest.fixture
def sound(tmp_path: Path) -> TrainConfig:
    pytest.importorskip("soundfile")
    return sound_pair(sounds(tmp_path / "data"))


@pytest.mark.parametrize(
    ("method", "pipeline"),
    [
        (VICRegConfig(expander=(16, 16)), "dali"),
        (BarlowTwinsConfig(projector=(16, 16)), "native"),
        (SimCLRConfig(projector=(16, 16)), "native"),
        (WMSEConfig(projector=(16, 4), w_size=8), "native"),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_every_method_with_a_second_branch_takes_pairs_of_shards(method: Any, pipeline: str, tmp_path: Path) -> None:
    if pipeline == "dali":
        pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed")
    made = captions(tmp_path / "made", train=16, val=0) / "train"
    members = {file.name: file.read_bytes() for file in sorted(made.iterdir())}
    config = image_text(shards(tmp_path / "shards", members), epochs=1, eval_every=0)
    branch_b = getattr(config.method, "branch_b")  # noqa: B009  # of this method alone
    config = replace(
        config, method=replace(method, branch_b=branch_b), data=replace(config.data, pipeline=pipeline, workers=1)
    )
    train(config, tmp_path / "run")
    assert [math.isfinite(row["total"]) for row in log(tmp_path / "run")] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pictures", "pictures_and_a_transformer", "sound"])
def test_a_stopped_run_resumes_to_the_bit(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(kind)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    train(replace(config, run=replace(config.run, steps=4)), parts)  # in the middle of the second epoch
    train(config, parts, resume=True)
    assert log(whole) == log(parts)
    newest = [sorted((folder / "checkpoints").iterdir())[-1] for folder in (whole, parts)]
    one, two = ({file.name: file.read_bytes() for file in path.iterdir()} for path in newest)
    assert one == two
    rows = [row for row in log(whole) if "rankme" in row]
    assert len(rows) == 3
    assert all(0 <= row[name] <= 100 for row in rows for name in ("recall_ab", "recall_ba"))
    assert ("knn" in rows[0]) is (kind == "sound")


@pytest.mark.parametrize(("precision", "autocast"), [("off", False), ("bf16", True)])
def test_both_sides_are_evaluated_in_the_run_s_precision(pictures: TrainConfig, precision: Any, autocast: bool) -> None:
    run = assemble(replace(pictures, run=replace(pictures.run, precision=precision)))
    evaluation = OnlineEvaluation.build(run, pictures)
    found: list[tuple[str, bool]] = []
    for name, encoder in run.method.encoders.items():
        encoder.register_forward_pre_hook(lambda *_, name=name: found.append((name, torch.is_autocast_enabled("cpu"))))
    try:
        assert evaluation(run.encoder).keys() >= {"recall_ab", "recall_ba"}
    finally:
        run.engine.close()
        run.data.close()
    assert {name for name, _ in found} == set(run.method.encoders)
    assert {inside for _, inside in found} == {autocast}


def test_the_words_are_the_runs(pictures: TrainConfig, tmp_path: Path) -> None:
    short = replace(pictures, run=replace(pictures.run, steps=2, eval_every=0))
    train(short, tmp_path / "run")
    assert "circle" in Vocabulary.load(tmp_path / "run").words
    (tmp_path / "data" / "train" / "000000.txt").write_text("zebra zebra zebra zebra zebra zebra zebra zebra zebra")
    with pytest.raises(UserError, match=rf"other words than those that .* was trained on \({FILE}\)"):
        train(replace(short, run=replace(short.run, steps=4)), tmp_path / "run", resume=True)


def test_evaluated_and_loaded(sound: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(replace(sound, run=replace(sound.run, eval_every=0)), run)
    for encoder in "ab":
        asked = EvalSettings(run=str(run), encoder=encoder, cache=False)
        assert 0 <= evaluate_run(asked, "knn", KNN(k=(3,))).rows[0]["accuracy"] <= 100
        assert evaluate_run(asked, "linear", Linear(frozen_features=True)).rows
    first, second = evaluate_run(EvalSettings(run=str(run)), "retrieval", Retrieval((1, 12))).rows
    assert (first["direction"], first["queries"]) == ("waveform to spectrogram", 12)
    assert first["recall@12"] == second["recall@12"] == 100
    with pytest.raises(UserError, match="linear cuts images anew, and this encoder takes a waveform"):
        evaluate_run(EvalSettings(run=str(run)), "linear", Linear())
    with pytest.raises(UserError, match=r"--robustness x: .* is of pairs"):
        evaluate_run(EvalSettings(run=str(run), robustness=("x",)), "knn", KNN(k=(3,)))
    with pytest.raises(UserError, match=r"--val-labels y: .* is of pairs"):
        evaluate_run(EvalSettings(run=str(run), val_labels="y"), "knn", KNN(k=(3,)))
    file = tmp_path / "data" / "val" / "bells" / "0000.wav"
    for encoder, shape in (("a", (1, 600)), ("b", (3, 8, 28))):
        path = tmp_path / f"{encoder}.safetensors"
        assert main(["export", str(run), str(path), "--encoder", encoder]) == 0
        own, exported = loaded(run, encoder=encoder), loaded(path)
        view = exported.preprocess(file)
        assert view.shape == shape
        assert torch.equal(view, own.preprocess(file.read_bytes()))
        assert torch.equal(exported(view[None]), own(view[None]))


@pytest.mark.parametrize("encoder", TEXT_ENCODERS)
def test_a_caption_is_encoded_by_itself(encoder: str, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "b.safetensors"
    pictures = image_text(captions(tmp_path / "data"), encoder)
    train(replace(pictures, run=replace(pictures.run, steps=3, eval_every=0)), run)
    assert main(["export", str(run), str(path), "--encoder", "b"]) == 0
    own, exported = loaded(run, encoder="b"), loaded(path)
    words_L = exported.preprocess("a red circle")
    assert torch.equal(words_L, own.preprocess("a red circle"))
    assert torch.equal(exported(words_L[None]), own(words_L[None]))


@pytest.mark.slow
def test_a_compiled_step_holds_a_transformer(pictures_and_a_transformer: TrainConfig, tmp_path: Path) -> None:
    config = replace(pictures_and_a_transformer, step=CompiledConfig())
    train(replace(config, run=replace(config.run, steps=4, eval_every=0)), tmp_path / "compiled")
    eager = replace(config, step=EagerConfig())
    train(replace(eager, run=replace(eager.run, steps=4, eval_every=0)), tmp_path / "eager")
    pairs = zip(log(tmp_path / "compiled"), log(tmp_path / "eager"), strict=True)
    assert all(one["total"] == pytest.approx(other["total"], rel=1e-4) for one, other in pairs)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "RUN", "OUT", "--to", "onnx", "--encoder", "b"], "--to onnx is for encoders of images"),
        (["inspect", "RUN"], "inspect draws images, and"),
        (["eval", "knn", "RUN"], "no accuracy"),
    ],
)
def test_what_pairs_cannot_be_asked(
    words: list[str], told: str, pictures: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(replace(pictures, run=replace(pictures.run, steps=1, eval_every=0)), run)
    places = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pictures", "pictures_and_a_transformer", "sound"])
def test_the_memory_of_a_step_is_foretold(kind: str, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(kind)
    small, large = (predict(config, batch, precision="off") for batch in (8, 16))
    assert 0 < small.kept < large.kept
    assert large.views == 2 * small.views
