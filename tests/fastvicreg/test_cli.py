"""Commands as a user types them: results, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastvicreg import config_file
from fastvicreg.cli import COMMANDS, main
from fastvicreg.commands.train import options_of
from fastvicreg.doctor import deliver_apart, pipeline_finding
from fastvicreg.encoders.gru.config import GRUConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.presets import PRESETS, preset
from fastvicreg.train.distributed import launched

TINY = "--arch resnet18 --width 16 --stem 3x3s2 --expander 16 16 --image-size 16 --recipe small"
QUICK = [*TINY.split(), *["--device", "cpu", "--workers", "1", "--epochs", "1", "--batch-size", "8"]]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line that ``arguments`` are answered with."""
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fastvicreg: ")
    return lines[0]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"fastvicreg {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "names", "way_out"),
    [
        ("trian", "'trian'", "did you mean 'train'"),
        ("train --epohcs 3", "--epohcs", "did you mean --epochs"),
        ("train --epochs three", "'three'", "--epochs"),
        ("train --epochs 0", "--epochs 0 is too small", "give 1 or more"),
        ("train --nope", "unknown option --nope.", "See fastvicreg train --help"),
        ("train --nope 3 --help-me", "unknown option --nope.", "See fastvicreg train --help"),
        ("train cats", "'cats'", "belongs to no option"),
        ("train --epochs", "--epochs", "needs a value"),
        ("--nope", "--nope", "fastvicreg COMMAND [OPTIONS]"),
        ("eval knn --run X", "--run is no option", "fastvicreg eval knn RUN"),
        ("eval --data X knn", "--data", "name the protocol first, such as fastvicreg eval knn --data"),
        ("eval knn X --json /proc/version/x", "/proc/version/x", "/proc/version is no folder"),
        ("eval knn X --json /proc", "/proc", "it is a folder"),
        ("eval knn X --report /proc/version", "/proc/version/knn.html", "give another place"),
        ("eval knn", "give", "fastvicreg eval knn RUN"),
        ("train --preset cifar", "'cifar'", "did you mean 'cifar10'"),
        ("train --data /no/such/folder", "/no/such/folder", "give a folder"),
        ("train --pipeline fcv", "'fcv'", "did you mean 'ffcv'"),
        ("train --arch resnet19", "'resnet19'", "resnet18"),
        ("train --width 8", "--width 8", "give 16"),
        ("train --recipe offical", "'offical'", "did you mean 'official'"),
        ("train --shuffle ful", "'ful'", "full"),
        ("train --device tpu", "'tpu'", "cuda"),
        ("train --device cuda:99", "cuda:99", ""),
        ("train --kernel loss=gramm", "'gramm'", "gram"),
        ("train --kernel los=gram", "'los=gram'", "loss"),
        ("train --batch-size 1", "--batch-size 1", "2 or more"),
        ("train --batch-size 100000", "100000", "give 4096 or less"),
        ("train --base-lr nan", "nan", "above 0"),
        ("train --weight-decay inf", "--weight-decay inf", "finite"),
        ("train --warmup-epochs inf", "--warmup-epochs inf", "finite"),
        ("train --invariance nan", "--invariance nan", "finite"),
        ("train --config /no/such.json", "/no/such.json", "cannot read"),
        ("train --config x --preset demo", "--preset demo", "give one"),
        ("train --resume", "--resume", "--out RUN"),
        ("train --val-data x", "--val-data ", "/x goes with --data"),
        ("eval knn /no/such/run", "/no/such/run", "--out"),
        ("eval knnn run", "'knnn'", "did you mean 'knn'"),
        ("bench los", "'los'", "did you mean 'loss'"),
        ("bench loader --workers -1", "--workers -1", "0 or more"),
        ("bench resample --size 0", "--size 0", "1 or more"),
        ("bench all --json x", "--json", "--out"),
        ("demo --epochs -1", "-1", "0 or more"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    arguments: str, names: str, way_out: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = arguments.split()
    if asked[0] == "train" and "--resume" not in asked:
        asked += ["--out", str(tmp_path / "run")]
    line = refused(capsys, asked)
    assert names in line
    assert way_out in line
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["train", "--print-config"]])
def test_a_reader_that_goes_away_is_no_traceback(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "fastvicreg", *arguments]
    try:
        finished = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_and_name_their_divergences(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = preset(name)
    chosen.config.check()
    assert chosen.divergences
    assert main(["train", "--preset", name, "--print-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert config_file.from_mapping(shown, "shown") == chosen.config


def test_presets_hold_the_published_numbers() -> None:
    long, short = preset("imagenet-1000ep").config, preset("imagenet-100ep").config
    assert (long.optim.base_lr, short.optim.base_lr) == (0.2, 0.3)
    for config in (long, short):
        assert config.run.batch_size == 2048
        assert isinstance(config.method, VICRegConfig)
        assert config.method.expander == (8192, 8192, 8192)
        assert config.encoder.arch == "resnet50"
        assert (config.optim.weight_decay, config.optim.warmup_epochs, config.optim.eta) == (1e-6, 10, 0.001)
        assert (config.method.invariance, config.method.variance, config.method.covariance) == (25, 25, 1)


@pytest.mark.parametrize(
    ("name", "optimizer", "numbers", "width"),
    [
        ("byol-imagenet-100ep", "lars official", (0.45, 1e-6, 4096, 10), 256),
        ("simsiam-imagenet-100ep", "sgd official", (0.05, 1e-4, 512, 0), 2048),
        ("barlow-twins-imagenet-1000ep", "lars official", (0.2, 1e-6, 2048, 10), 8192),
        ("simclr-imagenet-100ep", "lars tensorflow", (0.3, 1e-4, 4096, 10), 128),
        ("moco-imagenet-200ep", "sgd official", (0.03, 1e-4, 256, 0), 128),
        ("swav-imagenet-400ep", "lars larc", (0.3, 1e-6, 4096, 10), 128),
        ("solo-cifar10-byol", "lars clipped", (1.0, 1e-5, 256, 10), 256),
        ("solo-cifar10-simsiam", "sgd official", (0.5, 1e-5, 256, 10), 2048),
        ("solo-cifar10-barlow-twins", "lars clipped", (0.3, 1e-4, 256, 10), 2048),
        ("solo-cifar10-simclr", "lars clipped", (0.4, 1e-4, 256, 10), 256),
        ("solo-cifar10-moco", "sgd official", (0.3, 1e-4, 256, 10), 256),
        ("solo-cifar10-wmse", "adam official", (2e-3, 1e-6, 256, 10), 64),
        ("solo-cifar10-swav", "lars clipped", (0.6, 1e-6, 256, 10), 128),
    ],
)
def test_presets_of_the_other_methods_hold_the_published_numbers(
    name: str, optimizer: str, numbers: tuple[float, ...], width: int
) -> None:
    config = preset(name).config
    optim, method = config.optim, config.method
    assert f"{optim.optimizer} {optim.lars_form}" == optimizer
    assert (optim.base_lr, optim.weight_decay, config.run.batch_size, optim.warmup_epochs) == numbers
    assert getattr(method, "projector")[-1] == width  # noqa: B009
    assert name.replace("-", "_").find(method.name) >= 0
    assert not getattr(method, "is_regularized")  # noqa: B009


def test_any_field_overrides_a_preset_and_a_saved_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        main(["train", "--preset", "imagenet-100ep", "--epochs", "7", "--expander", "64", "32", "--print-config"]) == 0
    )
    saved = tmp_path / "mine.json"
    saved.write_text(capsys.readouterr().out)
    assert main(["train", "--config", str(saved), "--base-lr", "0.7", "--print-config"]) == 0
    config = config_file.from_mapping(json.loads(capsys.readouterr().out), "shown")
    assert isinstance(config.method, VICRegConfig)
    assert (config.run.epochs, config.method.expander, config.optim.base_lr) == (7, (64, 32), 0.7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[]", "not an object"),
        ('{"modell": {}}', "'modell'"),
        ('{"model": {"archh": 1}}', "'archh'"),
        ('{"run": {"epochs": "three"}}', "'three'"),
        ('{"model": {"stem": "5x5"}}', "'5x5'"),
        ('{"model": {"expander": 16}}', "16"),
        ('{"data": {"workers": 1.5}}', "1.5"),
    ],
)
def test_a_damaged_config_is_one_line(text: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert says in refused(capsys, ["train", "--config", str(path), "--print-config"])


def test_train_leaves_a_run_and_refuses_to_overwrite_it(
    make_folder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, out = make_folder(), tmp_path / "run"
    arguments = ["train", "--data", str(data), "--out", str(out), *QUICK]
    assert main(arguments) == 0
    capsys.readouterr()
    shown = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert shown == {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "preset.json"}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "total" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for name in ("invariance", "variance", "covariance", "covariance_independent", "covariance_minimum"):
        assert all(row[name] >= 0 for row in steps)
    assert {"embedding_std", "lr", "images_per_s", "data_wait", "epoch"} <= steps[0].keys()
    assert [set(row) for row in rows if "knn" in row] == [{"epoch", "step", "knn", "rankme"}]
    before = (out / "metrics.jsonl").read_bytes()
    assert "--resume" in refused(capsys, arguments)
    assert (out / "metrics.jsonl").read_bytes() == before
    assert "--width 16" in refused(capsys, [*arguments, "--resume", "--width", "32"])
    assert main(["eval", "knn", str(out), "--k", "5", "--json", str(tmp_path / "knn.json")]) == 0
    assert 0 <= json.loads((tmp_path / "knn.json").read_text())["rows"][0]["accuracy"] <= 100
    assert main(["eval", "linear", str(out), "--frozen-features"]) == 0
    assert "linear:" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_one_line(
    make_folder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("kept")
    line = refused(capsys, ["train", "--data", str(make_folder()), "--out", str(blocked / "run"), *QUICK])
    assert "cannot write" in line
    assert blocked.read_text() == "kept"


def test_half_of_a_launch_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun" in refused(capsys, ["train", "--out", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({"SLURM_NTASKS": "4"}, "torchrun --standalone --nproc-per-node 4 -m fastvicreg train"),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_NNODES": "2"}, "torchrun --nnodes 2 "),
    ],
)
def test_slurm_tasks_without_a_rendezvous_are_told_the_command(
    variables: dict[str, str],
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in (variables | {"SLURM_PROCID": "1"}).items():
        monkeypatch.setenv(name, value)
    assert command in refused(capsys, ["train", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_one_slurm_task_of_a_larger_allocation_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert launched().world_size == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched().world_size == 2, "torchrun's own tasks are left alone"


def test_doctor_tells_what_a_pipeline_s_own_process_lacks() -> None:
    finding = pipeline_finding("nowhere")
    assert (finding.works, finding.needed) == (False, True)
    with pytest.raises(UserError, match=r"^unknown pipeline 'nowhere'"):
        deliver_apart("nowhere")
    with pytest.raises(subprocess.TimeoutExpired):
        deliver_apart("native", seconds=0.01)


@pytest.mark.slow
def test_doctor_finds_every_needed_part_working(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
    rows = json.loads((tmp_path / "doctor.json").read_text())["rows"]
    assert {(row["kind"], row["name"]) for row in rows} >= {("pipeline", "native"), ("kernel", "loss=gram")}
    assert all(row["works"] or row["remedy"] for row in rows)


@pytest.mark.parametrize("again", [["--method", "byol"], ["--method=byol"]])
def test_of_an_option_given_twice_the_last_counts_for_all_that_it_decides(again: list[str]) -> None:
    settings = options_of(["--method", "vicreg", "--arch", "resnet18", *again, "--arch", "gru"]).settings
    assert (settings.method.name, type(settings.method)) == ("byol", BYOLConfig)
    assert (settings.encoder.arch, type(settings.encoder)) == ("gru", GRUConfig)
