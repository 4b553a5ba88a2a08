"""What is given to ``fastvicreg train`` is what a run has: no option is passed over in silence."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from fastvicreg.cli import main

Shown = dict[str, Any]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Shown:
    """The settings that these arguments make."""
    assert main(["train", *arguments, "--print-config"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_warm_up_in_epochs_takes_the_place_of_a_presets_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--preset", "cifar10")["optim"]["warmup_share"] == 0.1
    given = shown(capsys, "--preset", "cifar10", "--warmup-epochs", "3")["optim"]
    assert (given["warmup_epochs"], given["warmup_share"]) == (3.0, 0.0)
    given = shown(capsys, "--preset", "cifar10", "--warmup_epochs=3", "--warmup-share", ".2")["optim"]
    assert (given["warmup_epochs"], given["warmup_share"]) == (3.0, 0.2)


def test_epochs_take_the_place_of_a_configs_steps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(shown(capsys, "--preset", "cifar10", "--total-steps", "70")))
    assert shown(capsys, "--config", str(saved))["run"]["total_steps"] == 70
    given = shown(capsys, "--config", str(saved), "--epochs", "4")["run"]
    assert (given["epochs"], given["total_steps"]) == (4, 0)
    assert shown(capsys, "--preset", "cifar10", "--total-steps", "70", "--epochs", "4")["run"]["total_steps"] == 70


def test_kernels_of_several_flags_are_all_taken(capsys: pytest.CaptureFixture[str]) -> None:
    given = shown(capsys, "--kernel", "loss=reference", "--epochs", "4", "--kernel=lars=reference", "augment=numba")
    assert given["run"]["kernel"] == ["loss=reference", "lars=reference", "augment=numba"]
    assert given["run"]["epochs"] == 4


@pytest.mark.parametrize("flag", ["--data", "--val-data", "--val-labels", "--init", "--out", "--config"])
def test_an_empty_path_is_no_path_left_out(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    # As `--init "$WEIGHTS"` gives it, whose variable was never set: the run would begin with fresh weights.
    assert main(["train", flag, "", "--print-config"]) == 2
    assert f"{flag} is empty: give a path, or leave it out." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--variance -25", "--variance -25.0 cannot train: give a finite value of at least 0"),
        ("--invariance -1", "--invariance -1.0 cannot train"),
        ("--method vicregl --covariance -1", "--covariance -1.0 cannot train"),
        ("--method vicregl --variance inf", "--variance inf cannot train"),
        ("--invariance 0 --variance 0 --covariance 0", "leaves no term to train by: give one of them a weight above 0"),
        ("--eta 0", "--eta 0.0 cannot train: give a finite value above 0"),
        ("--eta nan", "--eta nan"),
        ("--method byol --no-predictor --predictor-hidden 8", "--predictor-hidden 8 needs a predictor"),
        ("--method simsiam --no-predictor --predictor-hidden 8 4", "--predictor-hidden 8 4 needs a predictor"),
        ("--method swav --sharpness inf", "--sharpness inf cannot train"),
        ("--method swav --sharpness .01", "--sharpness 0.01 overflows"),
    ],
)
def test_values_that_do_nothing_or_train_the_other_way_are_refused(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments.split(), "--print-config"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--optimizer sgd --eta .02", "--eta .02 is of --optimizer lars, not of sgd: leave it out."),
        ("--optimizer adamw --sgd-momentum=.5", "--sgd-momentum .5 is of --optimizer lars and sgd, not of adamw"),
        ("--optimizer adam --kernel loss=gram lars=foreach", "--kernel lars=foreach is of --optimizer lars, not of"),
        ("--words 40", "--words 40 is of a text, and there is no --pair: leave it out."),
        ("--unpaired skip", "--unpaired skip is of pairs, and there is no --pair: leave it out."),
        ("--data D --pair image text --branch-b gru --mels 64", "of a spectrogram, and --pair image text has none"),
        ("--data D --pair image text --branch-b gru --clip-seconds 2", "of sounds, and --pair image text has none"),
    ],
)
def test_options_that_nothing_in_the_run_takes_are_refused(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments.split(), "--print-config"]) == 2
    assert says in capsys.readouterr().err


def test_a_presets_value_that_its_optimizer_does_not_take_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--preset", "cifar10", "--optimizer", "adamw")["optim"]["eta"] == 0.02
    assert shown(capsys, "--optimizer", "sgd", "--sgd-momentum", ".5")["optim"]["sgd_momentum"] == 0.5
    assert shown(capsys, "--optimizer", "sgd", "--kernel", "lars=auto")["optim"]["optimizer"] == "sgd"


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        ("--preset dino-imagenet-100ep --clip 0", "--clip-by total"),
        ("--preset solo-cifar10 --optimizer adamw", "--lars-form official"),
        ("--preset simsiam-imagenet-100ep --optimizer lars", "--no-decay-1d"),
    ],
)
def test_a_presets_value_that_contradicts_an_option_is_refused_with_what_takes_it_back(
    arguments: str, way_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments.split(), "--print-config"]) == 2
    assert way_out in capsys.readouterr().err
    assert shown(capsys, *arguments.split(), *way_out.split())["optim"]["clip_by"] == "total"


def test_a_word_for_a_number_that_may_be_left_out_is_refused_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--weight-decay-end", "none"]) == 2
    assert capsys.readouterr().err == (
        "fastvicreg: --weight-decay-end cannot be 'none': give a number, or None. See fastvicreg train --help.\n"
    )
    given = ("--preset", "dino-imagenet-100ep", "--weight-decay-end", "None")
    assert shown(capsys, *given)["optim"]["weight_decay_end"] is None


def test_what_is_refused_is_one_line_without_a_box_in_ascii_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["train", "--epochs", "abc"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastvicreg: Error parsing --epochs: invalid literal")
    assert "---" not in said
